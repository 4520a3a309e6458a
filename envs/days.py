"""B days of traffic side by side: the rules of AdDay.

Dims: B rows (days in markets of their own), N ads, L levels, V codes per level.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.arguments import integer, one_of, real, reals, row_integers
from envs.engine import SPLIT_ROOTS, Arrays, Engine, Settings, checked_options
from envs.render import LastAuctions
from envs.spaces import IDENTITY, request_tensors
from gpr_rl.random import Purpose, uniform
from gpr_rl.schema import Request
from simulators.day.auction import MECHANISMS, AuctionConfig
from simulators.day.day import DayConfig, DaySimulator
from simulators.day.pacing import KINDS
from simulators.rewards import final_value
from simulators.world import World

_AUCTION = ("num_slots", "reserve_cpm", "position_effect")


class DayArguments(Settings, total=False):
    """What environments of days take: `Settings`, and the rules of the day (`DayConfig`)."""

    auction: str
    num_slots: int
    reserve_cpm: float
    position_effect: Sequence[float] | None
    num_rivals: int
    pacing: str
    num_requests: int | None
    conversion_delay_s: float
    attribution_window_s: float


_RULES: dict[str, Callable[[str, Any], Any]] = {
    "auction": lambda name, value: one_of(name, value, MECHANISMS),
    "num_slots": integer,
    "reserve_cpm": real,
    "position_effect": lambda name, value: None if value is None else reals(name, value),
    "num_rivals": integer,
    "pacing": lambda name, value: one_of(name, value, KINDS),
    "num_requests": lambda name, value: None if value is None else integer(name, value),
    "conversion_delay_s": real,
    "attribution_window_s": real,
}
"""Argument -> what checks it."""


def day_rules(**rules: Any) -> DayConfig:
    """Return the rules of a day from the arguments of `AdDayEnv`.

    Raises:
        ValueError: A value out of range or of another kind.
        TypeError: An argument that is none.
    """
    unknown = [name for name in rules if name not in _RULES]
    if unknown:
        # Python's words for it: torchrl's GymEnv tries `frameskip` and looks for them.
        raise TypeError(
            f"unexpected keyword argument {unknown[0]!r}; rules of a day: {', '.join(_RULES)}"
        )
    rules = {name: _RULES[name](name, value) for name, value in rules.items()}
    auction = {name: rules.pop(name) for name in _AUCTION if name in rules}
    if "auction" in rules:
        auction["mechanism"] = rules.pop("auction")
    return DayConfig(auction=AuctionConfig(**auction), **rules)


class Days(Engine):
    """Episodes are days; rows end at midnight, by truncation.

    Every request that some ad may answer is one path of L codes; the ad enters the auction, and
    the next such request is opened. See `AdDayEnv` for the rules as users see them.
    """

    blank = MappingProxyType(
        dict.fromkeys(("pctr", "pcvr", "ecpm", "final_value", "price", "charge"), np.float32(0))
        | dict.fromkeys(("ad_id", "slot", "answered_request_id"), np.int64(-1))
        | {"clicked": np.bool_(False)}
    )

    def __init__(
        self,
        world: str | Path | World,
        num_rows: int,
        *,
        config: DayConfig | None = None,
        **arguments: Unpack[DayArguments],
    ) -> None:
        """Start without days; `config` has the rules, if they are not among the arguments.

        Raises:
            ValueError: A wrong argument, or a split without a day that has requests.
            TypeError: An argument that is none.
        """
        given: dict[str, Any] = {**arguments}
        settings: Any = {key: given.pop(key) for key in Settings.__annotations__ if key in given}
        rules = day_rules(**given)
        super().__init__(world, num_rows, **settings)
        self.simulator = DaySimulator(
            self.world, num_rows, config or rules, SPLIT_ROOTS[self.split]
        )
        self.days = self.simulator.playable(self.world.days(self.split))
        if len(self.days) == 0:
            raise ValueError(f"split {self.split!r} of this world has no day with requests")
        self._open_clicks = np.zeros(num_rows, dtype=np.int64)
        self._request: Request | None = None
        self._last = LastAuctions(num_rows)

    def reset(
        self, rows: NDArray[np.bool_] | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        """Begin the next day of `rows`; `options` may name the `day`, an integer or [B].

        Raises:
            ValueError: Another option, or a day without requests.
        """
        first = rows is None or self._request is None
        fresh = np.ones(self.num_rows, dtype=np.bool_) if first else np.asarray(rows)
        chosen = torch.from_numpy(fresh)
        options = checked_options(options, "day")
        seed, episode = torch.from_numpy(self._seed), torch.from_numpy(self._episode)
        draw = uniform(self.simulator.root, Purpose.DAY, seed, episode)
        day = self.days[(draw * len(self.days)).long()]
        if "day" in options:
            day = self._check_days(options["day"])
        self.simulator.begin(chosen, seed, episode, day)
        self._episode[fresh] += 1
        self._blank_report(fresh)
        for flags in (self.truncated, self.reported, self._illegal):
            flags[fresh] = False
        self._open_clicks[fresh] = 0
        self._last.forget(fresh)
        self._choices.clear(fresh)
        self._open(chosen)

    def _check_days(self, day: Any) -> Tensor:
        days = torch.from_numpy(row_integers("day", day, self.num_rows))
        known = self.simulator.playable(torch.arange(self.world.info.num_days))
        unknown = ~torch.isin(days, known)
        if unknown.any():
            raise ValueError(
                f"day must be one with requests, {int(known[0])} to {int(known[-1])}, got "
                f"{int(days[unknown][0])}"
            )
        return days

    def _open(self, rows: Tensor) -> None:
        """Show the requests at hand; `rows` begin new paths, or await nothing after midnight."""
        simulator = self.simulator
        self._request = simulator.moment.request(self.world)
        self._identity = {key: getattr(self._request, key).numpy() for key in IDENTITY}
        open_rows = rows & ~simulator.over
        if open_rows.any():
            legal = self.world.trie.restrict(simulator.eligible[open_rows])
            self._choices.open(legal, None if open_rows.all() else open_rows.numpy())
        if not open_rows.equal(rows):
            self._choices.close((rows & simulator.over).numpy())

    def step(
        self, action: NDArray[np.int64], rows: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """Choose the next code; see `Engine`. Rows whose day is over stay so and get 0."""
        acting = ~self.truncated if rows is None else rows & ~self.truncated
        number = self.simulator.number.numpy()
        finished, illegal = self._choices.step(
            action, acting, strict=self.strict, request_id=number
        )
        reward = np.where(illegal, self.illegal_reward, 0.0).astype(np.float32)
        self._illegal = np.where(acting, illegal, self._illegal)
        ended = finished | illegal
        self._blank_report(self.reported)
        self.reported = ended
        if ended.any():
            self._report["answered_request_id"][ended] = number[ended]
            if finished.any():
                self._serve(np.flatnonzero(finished), reward)
            for name in ("num_illegal", "num_unfilled"):
                self.simulator.totals[name] += torch.from_numpy(illegal)
            moved = torch.from_numpy(ended)
            self.simulator.advance(moved)
            self._open(moved)
        self._close_days(acting)
        return reward

    def _serve(self, index: NDArray[np.int64], reward: NDArray[np.float32]) -> None:
        """Show the ads chosen in rows `index`; write their rewards and reports."""
        market = torch.from_numpy(index)
        served = self.simulator.serve(market, torch.from_numpy(self._choices.ad_id[index]))
        own = served.outcome[:, :1]
        total, components = self.reward(own)
        in_slot = served.auction.slot_candidate == 0
        shown = in_slot.any(1)
        reward[index] = torch.where(shown, total[:, 0], 0.0).float().numpy()
        said = {
            "ad_id": own.ad_id[:, 0],
            "slot": torch.where(shown, in_slot.to(torch.int8).argmax(1), -1),
            "pctr": own.pctr[:, 0],
            "pcvr": own.pcvr[:, 0],
            "ecpm": own.ecpm[:, 0],
            "final_value": final_value(own)[:, 0],
            "price": (served.auction.price * in_slot).sum(1),
            "charge": served.paid.sum(1),
            "clicked": (served.clicked & in_slot).any(1),
        }
        self._write_report(index, said, components)
        self._last.add(index, served)

    def _close_days(self, acting: NDArray[np.bool_]) -> None:
        ended = acting & self.simulator.over.numpy()
        if ended.any():
            index = np.flatnonzero(ended)
            self.truncated = self.truncated | ended
            self._open_clicks[index] = self.simulator.open_clicks(torch.from_numpy(index)).numpy()

    def shown(self) -> dict[str, NDArray]:
        """Return the request tensors."""
        assert self._request is not None
        return {key: value.numpy() for key, value in request_tensors(self._request).items()}

    def info(self) -> Arrays:
        """Return the request's identity, and the day so far."""
        info = self._identity | {
            "day": self.simulator.day.numpy(),
            "illegal": self._illegal,
            "open_clicks": self._open_clicks,
        }
        return info | {name: total.numpy() for name, total in self.simulator.totals.items()}

    def eligible(self) -> NDArray[np.bool_]:
        """Return bool [B, N], the ads that each row's user may see now."""
        return self.simulator.eligible.numpy()

    def view(self, row: int) -> str:
        """Return the last auction of a row, of those since the last reset."""
        totals = {name: total[row].item() for name, total in self.simulator.totals.items()}
        summary = (
            f"so far: {totals['impressions']} impressions, {totals['clicks']} clicks, "
            f"{totals['conversions']} conversions, revenue {totals['revenue']:.2f}, "
            f"{totals['num_unfilled']} unfilled"
        )
        return self._last.view(row, summary)
