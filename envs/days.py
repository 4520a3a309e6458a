"""B days of traffic side by side: the rules of AdDay.

Dims: B rows (days in markets of their own), N ads, L levels, V codes per level.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.arguments import integer, one_of, real, reals
from envs.choices import Choices
from envs.engine import Arrays
from envs.episodes import SPLIT_ROOTS
from envs.last_auctions import LastAuctions
from envs.render import AuctionView
from envs.spaces import request_tensors
from gpr_rl.random import Purpose, uniform
from gpr_rl.schema import Request
from simulators.day.auction import MECHANISMS, AuctionConfig
from simulators.day.day import DayConfig, DaySimulator
from simulators.day.pacing import KINDS
from simulators.rewards import RewardMix, RewardSpec, final_value
from simulators.world import World

_NUMBERS = ("pctr", "pcvr", "ecpm", "final_value", "price", "charge")
_COUNTS = ("ad_id", "slot", "answered_request_id")
_AUCTION = ("num_slots", "reserve_cpm", "position_effect")
_WHOLE = ("num_slots", "num_rivals", "num_requests")
_REAL = ("reserve_cpm", "conversion_delay_s", "attribution_window_s")
_RULES = (
    "auction",
    *_AUCTION,
    "num_rivals",
    "pacing",
    "num_requests",
    "conversion_delay_s",
    "attribution_window_s",
)


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
    if rules.get("num_requests", 0) is None:
        del rules["num_requests"]
    for name in _WHOLE:
        if name in rules:
            rules[name] = integer(name, rules[name])
    for name in _REAL:
        if name in rules:
            rules[name] = real(name, rules[name])
    if "pacing" in rules:
        one_of("pacing", rules["pacing"], KINDS)
    auction = {name: rules.pop(name) for name in _AUCTION if name in rules}
    if "auction" in rules:
        auction["mechanism"] = one_of("auction", rules.pop("auction"), MECHANISMS)
    if auction.get("position_effect") is not None:
        auction["position_effect"] = reals("position_effect", auction["position_effect"])
    return DayConfig(auction=AuctionConfig(**auction), **rules)


class Days:
    """An `Engine` whose episodes are days; rows end at midnight, by truncation.

    Every request that some ad may answer is one path of L codes; the ad enters the auction, and
    the next such request is opened. See `AdDayEnv` for the rules as users see them.
    """

    def __init__(
        self,
        world: World,
        num_rows: int,
        *,
        reward: RewardSpec = None,
        split: str = "train",
        illegal_reward: float = -1.0,
        strict: bool = False,
        config: DayConfig | None = None,
    ) -> None:
        """Start without days; call `seed`, then `reset`.

        Raises:
            ValueError: An unknown split, or one without a day that has requests.
        """
        self.world, self.num_rows = world, num_rows
        self.reward = RewardMix.of(reward)
        self.illegal_reward, self.strict = float(illegal_reward), strict
        days = world.days(split)
        self.simulator = DaySimulator(world, num_rows, config or DayConfig(), SPLIT_ROOTS[split])
        self.days = self.simulator.playable(days)
        if len(self.days) == 0:
            raise ValueError(f"split {split!r} of this world has no day with requests")
        self._choices = Choices(world.trie, num_rows)
        self._seed = torch.zeros(num_rows, dtype=torch.int64)
        self._episode = torch.zeros(num_rows, dtype=torch.int64)
        no = np.zeros(num_rows, dtype=np.bool_)
        self.terminated, self.truncated, self.reported = no, no.copy(), no.copy()
        self._illegal, self._open_clicks = no.copy(), np.zeros(num_rows, dtype=np.int64)
        self._request: Request | None = None
        self._report: Arrays = {name: np.zeros(num_rows, dtype=np.float32) for name in _NUMBERS}
        self._report |= {name: np.full(num_rows, -1, dtype=np.int64) for name in _COUNTS}
        self._report["clicked"] = no.copy()
        self._report["components"] = {
            name: np.zeros(num_rows, dtype=np.float32) for name in self.reward.functions
        }
        self._last = LastAuctions(num_rows)

    @property
    def awaiting(self) -> NDArray[np.bool_]:
        """[B], True where a choice is due."""
        return self._choices.awaiting

    @property
    def legal_mask(self) -> NDArray[np.bool_]:
        """[B, V], what may be chosen; all True where no choice is due."""
        return self._choices.legal_mask

    def seed(self, seed: NDArray[np.int64], rows: NDArray[np.bool_] | None = None) -> None:
        """Start the streams of `rows` (None: all) anew."""
        chosen = self._mask(rows)
        self._seed = torch.where(chosen, torch.from_numpy(seed), self._seed)
        self._episode = self._episode.masked_fill(chosen, 0)

    def reset(
        self, rows: NDArray[np.bool_] | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        """Begin the next day of `rows`; `options` may name the `day`, an integer or [B].

        Raises:
            ValueError: Another option, or a day without requests.
        """
        chosen = self._mask(rows) if self._request is not None else self._mask(None)
        options = options or {}
        if set(options) - {"day"}:
            raise ValueError(f"options may hold 'day' only, got {sorted(options)}")
        draw = uniform(self.simulator.root, Purpose.DAY, self._seed, self._episode)
        day = self.days[(draw * len(self.days)).long()]
        if "day" in options:
            day = self._check_days(options["day"])
        self.simulator.begin(chosen, self._seed, self._episode, day)
        self._episode = self._episode + chosen.long()
        fresh = chosen.numpy()
        self._blank_report(fresh)
        for flags in (self.truncated, self.reported, self._illegal):
            flags[fresh] = False
        self._open_clicks[fresh] = 0
        self._last.forget(fresh)
        self._choices.clear(fresh)
        self._open(chosen)

    def _mask(self, rows: NDArray[np.bool_] | None) -> Tensor:
        every = torch.ones(self.num_rows, dtype=torch.bool)
        return every if rows is None else torch.from_numpy(rows)

    def _check_days(self, day: Any) -> Tensor:
        wanted = np.asarray(day)
        if wanted.dtype.kind not in "iu" or wanted.shape not in ((), (self.num_rows,)):
            raise ValueError(f"day must be an integer or [{self.num_rows}], got {day!r}")
        days = torch.from_numpy(np.broadcast_to(wanted, self.num_rows).astype(np.int64))
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
        open_rows = rows & ~simulator.over
        if open_rows.any():
            legal = self.world.trie.restrict(simulator.eligible[open_rows])
            self._choices.open(legal, None if open_rows.all() else open_rows.numpy())
        if not open_rows.equal(rows):
            self._choices.close((rows & simulator.over).numpy())

    def step(
        self, action: NDArray[np.int64], rows: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """Choose the next code of `rows`; rows whose day is over stay so and get 0.

        Raises:
            ValueError: An action outside [0, V).
            IllegalActionError: An illegal action, if `strict`; nothing has changed then.
        """
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
        report = self._report
        values = {
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
        for name, value in values.items():
            report[name][index] = value.numpy()
        for name, value in components.items():
            report["components"][name][index] = value[:, 0].numpy()
        self._last.add(index, served)

    def _blank_report(self, rows: NDArray[np.bool_]) -> None:
        report = self._report
        for name in _NUMBERS:
            report[name][rows] = 0.0
        for name in _COUNTS:
            report[name][rows] = -1
        report["clicked"][rows] = False
        for component in report["components"].values():
            component[rows] = 0.0

    def _close_days(self, acting: NDArray[np.bool_]) -> None:
        ended = acting & self.simulator.over.numpy()
        if ended.any():
            index = np.flatnonzero(ended)
            self.truncated = self.truncated | ended
            self._open_clicks[index] = self.simulator.open_clicks(torch.from_numpy(index)).numpy()

    def observation(self) -> dict[str, NDArray]:
        """Return the entries of `envs.spaces.observation_fields` by key, [B, ...], no mask."""
        assert self._request is not None
        tensors = {key: value.numpy() for key, value in request_tensors(self._request).items()}
        return tensors | {"prefix": self._choices.prefix, "level": self._choices.level}

    def info(self) -> Arrays:
        """Return what every row's `info` has, [B] each, without `action_mask`."""
        request, simulator = self._request, self.simulator
        info: Arrays = {
            name: np.zeros(self.num_rows, dtype=np.int64)
            if request is None
            else getattr(request, name).numpy()
            for name in ("request_id", "user_id", "timestamp")
        }
        info |= {
            "day": simulator.day.numpy(),
            "illegal": self._illegal,
            "open_clicks": self._open_clicks,
        }
        return info | {name: total.numpy() for name, total in simulator.totals.items()}

    def report(self) -> Arrays:
        """Return what `info` adds at the end of a request, [B] each; see `reported`."""
        return self._report

    def eligible(self) -> NDArray[np.bool_]:
        """Return bool [B, N], the ads that each row's user may see now."""
        return self.simulator.eligible.numpy()

    def view(self, row: int) -> AuctionView:
        """Return the last auction of a row, of those since the last reset."""
        totals = {name: total[row].item() for name, total in self.simulator.totals.items()}
        summary = (
            f"so far: {totals['impressions']} impressions, {totals['clicks']} clicks, "
            f"{totals['conversions']} conversions, revenue {totals['revenue']:.2f}, "
            f"{totals['num_unfilled']} unfilled"
        )
        return self._last.view(row, summary)
