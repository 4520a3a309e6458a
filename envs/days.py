"""Days of traffic side by side: the rules of AdDay.

Dims: B rows, M days in markets of their own (B of them, or B / K where K rows share one), N ads,
L levels, V codes per level.
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

    With `candidates` K > 1, K neighbouring rows share a day and propose an ad each for its
    requests. The first row's ad is played, by the rules of K = 1: its reward and report are those
    of the auction. The others' ads are scored by the rankers only, before that: their reward is
    what the reward function says of the ad if it is shown, at its eCPM. All K have that number in
    `ranker_reward`, where what is compared must be alike. The next request is opened when all K
    paths have ended.
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
        if self.candidates > 1:
            self._report["ranker_reward"] = np.zeros(num_rows, dtype=np.float32)
        self.simulator = DaySimulator(
            self.world, num_rows // self.candidates, config or rules, SPLIT_ROOTS[self.split]
        )
        self.days = self.simulator.playable(self.world.days(self.split))
        if len(self.days) == 0:
            raise ValueError(f"split {self.split!r} of this world has no day with requests")
        self._open_clicks = np.zeros(num_rows, dtype=np.int64)
        self._ended = np.zeros(num_rows, dtype=np.bool_)
        self._request: Request | None = None
        self._last = LastAuctions(self.simulator.num_markets)

    def reset(
        self, rows: NDArray[np.bool_] | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        """Begin the next day of `rows`; `options` may name the `day`, an integer or [B].

        Raises:
            ValueError: Another option, or a day without requests; a part of a group.
        """
        first = self.whole_groups(rows) is None or self._request is None
        fresh = np.ones(self.num_rows, dtype=np.bool_) if first else np.asarray(rows)
        chosen = self._markets(fresh)
        options = checked_options(options, "day")
        seed, episode = self._markets(self._seed), self._markets(self._episode)
        draw = uniform(self.simulator.root, Purpose.DAY, seed, episode)
        day = self.days[(draw * len(self.days)).long()]
        if "day" in options:
            day = self._check_days(options["day"])
        self.simulator.begin(chosen, seed, episode, day)
        self._episode[fresh] += 1
        self._blank_report(fresh)
        for flags in (self.truncated, self.reported, self._illegal, self._ended):
            flags[fresh] = False
        self._open_clicks[fresh] = 0
        self._last.forget(chosen.numpy())
        self._choices.clear(fresh)
        self._open(chosen)

    def _check_days(self, day: Any) -> Tensor:
        by_row = row_integers("day", day, self.num_rows)
        days = torch.from_numpy(np.ascontiguousarray(self.of_group("day", by_row)))
        known = self.simulator.playable(torch.arange(self.world.info.num_days))
        unknown = ~torch.isin(days, known)
        if unknown.any():
            raise ValueError(
                f"day must be one with requests, {int(known[0])} to {int(known[-1])}, got "
                f"{int(days[unknown][0])}"
            )
        return days

    def _markets(self, values: NDArray) -> Tensor:
        """Return the first row's [B, ...] of every market, [M, ...]."""
        return torch.from_numpy(np.ascontiguousarray(values[:: self.candidates]))

    def _open(self, markets: Tensor) -> None:
        """Show the requests at hand; `markets` begin new paths, or await nothing after midnight."""
        simulator = self.simulator
        self._request = simulator.moment.request(self.world)
        self._identity = {key: self.by_row(getattr(self._request, key).numpy()) for key in IDENTITY}
        opened = markets & ~simulator.over
        if opened.any():
            rows = self.by_row(opened.numpy())
            eligible = simulator.eligible[opened].repeat_interleave(self.candidates, 0)
            legal = self.world.trie.restrict(eligible)
            self._choices.open(legal, None if rows.all() else rows)
        if not opened.equal(markets):
            self._choices.close(self.by_row((markets & simulator.over).numpy()))

    def step(
        self, action: NDArray[np.int64], rows: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """Choose the next code; see `Engine`. Rows whose day is over stay so and get 0."""
        acting = ~self.truncated if rows is None else rows & ~self.truncated
        number = self.by_row(self.simulator.number.numpy())
        finished, illegal = self._choices.step(
            action, acting, strict=self.strict, request_id=number
        )
        reward = np.where(illegal, self.illegal_reward, 0.0).astype(np.float32)
        self._illegal = np.where(acting, illegal, self._illegal)
        self._blank_report(self.reported)
        self.reported = ended = finished | illegal
        if ended.any():
            self._report["answered_request_id"][ended] = number[ended]
            self._ended |= ended
            if self.candidates > 1 and finished.any():
                self._score(finished, reward)
            self._play(reward)
        self._close_days(acting)
        return reward

    def _play(self, reward: NDArray[np.float32]) -> None:
        """Play the first rows' ads where all paths have ended, and open the next requests."""
        size = self.candidates
        done = self._ended.reshape(-1, size).all(1) & ~self.simulator.over.numpy()
        if not done.any():
            return
        ad_id = self._choices.ad_id[::size]
        served = np.flatnonzero(done & (ad_id >= 0))
        if len(served):
            self._serve(served, ad_id[served], reward)
        for name in ("num_illegal", "num_unfilled"):
            self.simulator.totals[name] += torch.from_numpy(done & (ad_id < 0))
        self._ended[self.by_row(done)] = False
        moved = torch.from_numpy(done)
        self.simulator.advance(moved)
        self._open(moved)

    def _score(self, finished: NDArray[np.bool_], reward: NDArray[np.float32]) -> None:
        """Write what the rankers say of the ads that rows have `finished`; nothing is shown."""
        own = finished.reshape(-1, self.candidates)
        market = np.flatnonzero(own.any(1))
        ad_id = self._choices.ad_id.reshape(own.shape)[market].clip(0)
        outcome = self.simulator.score(torch.from_numpy(market), torch.from_numpy(ad_id))
        total, components = self.reward(outcome)
        said = {key: getattr(outcome, key) for key in ("ad_id", "pctr", "pcvr", "ecpm")}
        said |= {"final_value": final_value(outcome), "ranker_reward": total}
        picked = torch.from_numpy(own[market])
        index = np.flatnonzero(finished)
        said, components = (
            {key: value[picked] for key, value in part.items()} for part in (said, components)
        )
        self._write_report(index, said, components)
        reward[index] = said["ranker_reward"].detach().numpy()

    def _serve(
        self, index: NDArray[np.int64], ad_id: NDArray[np.int64], reward: NDArray[np.float32]
    ) -> None:
        """Show an ad in each market of `index`; write its row's reward and report."""
        market = torch.from_numpy(index)
        served = self.simulator.serve(market, torch.from_numpy(ad_id))
        index = index * self.candidates  # of the markets' first rows
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
        self._last.add(market.numpy(), served)

    def _close_days(self, acting: NDArray[np.bool_]) -> None:
        playing = acting.reshape(-1, self.candidates).any(1)
        ended = self.by_row(playing & self.simulator.over.numpy())
        if ended.any():
            index = np.flatnonzero(ended)
            self.truncated = self.truncated | ended
            market = torch.from_numpy(index // self.candidates)
            self._open_clicks[index] = self.simulator.open_clicks(market).numpy()

    def shown(self) -> dict[str, NDArray]:
        """Return the request tensors."""
        assert self._request is not None
        tensors = request_tensors(self._request)
        return {key: self.by_row(value.numpy()) for key, value in tensors.items()}

    def info(self) -> Arrays:
        """Return the request's identity, and the day so far."""
        info = self._identity | {
            "day": self.by_row(self.simulator.day.numpy()),
            "illegal": self._illegal,
            "open_clicks": self._open_clicks,
        }
        totals = self.simulator.totals.items()
        return info | {name: self.by_row(total.numpy()) for name, total in totals}

    def eligible(self) -> NDArray[np.bool_]:
        """Return bool [B, N], the ads that each row's user may see now."""
        return self.by_row(self.simulator.eligible.numpy())

    def view(self, row: int) -> str:
        """Return the last auction of a row's day, of those since the last reset."""
        row //= self.candidates
        totals = {name: total[row].item() for name, total in self.simulator.totals.items()}
        summary = (
            f"so far: {totals['impressions']} impressions, {totals['clicks']} clicks, "
            f"{totals['conversions']} conversions, revenue {totals['revenue']:.2f}, "
            f"{totals['num_unfilled']} unfilled"
        )
        return self._last.view(row, summary)
