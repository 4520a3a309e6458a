"""Market variants of a world: other dials, other prices, budgets that run out, realised rewards.

Dims: B requests, K candidates, N ads, D days, R logged requests.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gpr_rl.random import Purpose, uniform
from simulators.make import load_world
from simulators.progress import Progress, silent
from simulators.rewards import final_value
from simulators.rewards.outcome import Outcome, ecpm
from simulators.synthetic.config import MARKET_DIALS, PRESETS
from simulators.synthetic.evaluator import TruthEvaluator
from simulators.world import World
from simulators.world.history import DAY_S

_MARKET_SIGMA = 0.8
"""Of log m; together with the mean `market_cpm` this gives the heavy tail of public price logs."""
_OUT_SHARE = 1 / 3
_NUM_SCALED = 100_000
"""Logged candidates, the latest ones, that a market's reward scale is measured on."""


@dataclass(frozen=True, kw_only=True)
class Market:
    """What differs from the base market."""

    summary: str
    """For reports."""
    dials: Mapping[str, object] = field(default_factory=dict)
    """Fields of `WorldConfig` that it replaces: another world is made."""
    second_price: bool = False
    """A candidate earns what the request's highest rival leaves of its eCPM, not all of it."""
    budgets_run_out: bool = False
    """Ads whose budget the day's logged traffic has spent may not be shown."""
    realised: bool = False
    """Training sees drawn clicks and conversions instead of probabilities."""


MARKETS: dict[str, Market] = {
    "base": Market(summary="first price: a candidate earns its eCPM; budgets play no part"),
    "second_price": Market(
        summary="a candidate earns the highest rival bid if its eCPM under the rankers is at least "
        "that, and nothing otherwise; under the truth the same auction is charged at true rates",
        second_price=True,
    ),
    "tight_budgets": Market(
        summary="budgets are so tight that a third of the logged impressions come after their ad's "
        "budget of the day is spent; such ads are not legal any more",
        budgets_run_out=True,
    ),
    "sparse_rewards": Market(
        summary="training is paid by drawn clicks and conversions; measured in expectation",
        realised=True,
    ),
}
MARKETS |= {
    name: Market(summary=summary, dials=MARKET_DIALS[name])
    for name, summary in {
        "sparse_logs": "40 impressions per user with a tenth of exploration: weaker rankers",
        "drift": "interests change with probability .3 per day instead of .03",
        "deep_tree": "semantic IDs of 4 levels with 16 codes instead of 3 levels with more",
        "coarse_0": "vertical and category explain nothing of the interest match",
        "coarse_100": "vertical and category explain all of the interest match",
        "shuffled_tree": "control: behaviour follows a random assignment of ads to categories",
    }.items()
}
"""By name. `simulators.synthetic.config` has the dials."""


def load_market(world: str, market: str, seed: int, progress: Progress = silent) -> World:
    """Return a world under one of the `MARKETS`; a variant with other dials is made and cached.

    `world` is a name or a directory; `seed` and `progress` are as for `load_world`.

    Raises:
        ValueError: Unknown market, or another market than the base for a world without dials.
    """
    if market not in MARKETS:
        raise ValueError(f"unknown market {market!r}: choose one of {', '.join(MARKETS)}")
    if market == "base":
        return load_world(world, seed=seed, progress=progress)
    if world not in PRESETS:
        raise ValueError(f"market {market!r} needs a named synthetic world, got {world!r}")
    rules = MARKETS[market]
    name = f"{world}-{market}" if rules.dials else world
    loaded = load_world(name, seed=seed, progress=progress)
    return loaded if rules.dials else MarketWorld(loaded, rules)


class MarketWorld(World):
    """A world under other rules; everything that they don't touch is shared with it."""

    def __init__(self, world: World, rules: Market) -> None:
        super().__init__(world.parts, like=world)
        self.rules = rules
        self.logged_world = world
        """What the log says: pre-training learns from what was shown, legal now or not."""
        self.reward_scale = self._measured_scale()

    def replace(self, **changes: Any) -> "MarketWorld":
        """Return a market of the same rules with other `WorldParts`."""
        return type(self)(self.logged_world.replace(**changes), self.rules)

    def _measured_scale(self) -> float:
        """Return the standard deviation of the logged final values at the market's price."""
        if not self.rules.second_price:
            return self.logged_world.reward_scale
        seen = self._logged_outcome()
        return _spread(self.settle(seen, seen, seen.request_id[:, 0]))

    @cached_property
    def _splits(self) -> dict[str, Tensor]:
        return {} if self.rules.budgets_run_out else super()._splits

    def _logged_outcome(self) -> Outcome:
        """Return the latest logged candidates at their own bids, batch [R, 1]."""
        ids = torch.arange(len(self.request_ad))[-_NUM_SCALED:]
        pctr, pcvr = (self.logged[name][ids, None] for name in ("pctr", "pcvr"))
        return self.make_outcome(ids, self.request_ad[ids, None], pctr, pcvr)

    def eligible(self, request_id: Int[Tensor, " B"]) -> Bool[Tensor, "B N"]:
        """Return bool [B, N], the ads that may be shown and whose budget is left."""
        legal = super().eligible(request_id)
        if not self.rules.budgets_run_out:
            return legal
        time = torch.from_numpy(self.request_time[request_id.numpy()])
        return legal & (time[:, None] <= self.spent_at[time // DAY_S])

    @cached_property
    def spent_at(self) -> Int[Tensor, "D N"]:
        """When each ad's budget of each day is spent, int64 [D, N], seconds; never: far ahead."""
        time = torch.tensor(self.request_time[: len(self.request_ad)])
        day = time // DAY_S
        cell = day * self.num_ads + self.request_ad
        order = cell.argsort(stable=True)  # requests are in order of time
        spend = self.logged["ecpm"].double()[order] / 1_000.0
        total = spend.cumsum(0)
        first = torch.ones_like(cell, dtype=torch.bool)
        first[1:] = cell[order][1:] != cell[order][:-1]
        start = torch.where(first, total - spend, 0.0).cummax(0).values
        before = total - spend - start  # spent in this cell before the impression
        budget = torch.tensor(self.ads["budget"].astype("Float64").fillna(np.inf).to_numpy(float))
        share = before / budget[self.request_ad[order]]
        limit = torch.quantile(share[:10_000_000], 1.0 - _OUT_SHARE)
        out = share >= limit
        time = time[order]
        never = torch.iinfo(torch.int64).max
        spent = torch.full((self.info.num_days * self.num_ads,), never)
        spent = spent.scatter_reduce(0, cell[order][out], time[out], "amin")
        return spent.view(-1, self.num_ads)

    def rival_cpm(self, request_id: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return the highest rival bid of each request in eCPM, log-normal, float32 [B]."""
        mean = float(self.info.config["market_cpm"])  # type: ignore[arg-type]
        u = uniform(self.info.seed, Purpose.MARKET_PRICE, request_id)
        normal = torch.special.ndtri(u)
        return (mean * (_MARKET_SIGMA * normal - 0.5 * _MARKET_SIGMA**2).exp()).float()

    def outcome(
        self, request_id: Int[Tensor, " B"], ad_id: Int[Tensor, "B K"], **options: Any
    ) -> Outcome:
        """Return what the frozen rankers say of candidates under the market's rules."""
        seen = super().outcome(request_id, ad_id, **options)
        return self.settle(seen, seen, request_id)

    def settle(self, seen: Outcome, happened: Outcome, request_id: Int[Tensor, " B"]) -> Outcome:
        """Return `happened` with the market's price: the auction compares what is `seen`.

        A winner's price per event is what keeps the slot by the rankers' rates; it is charged at
        the rates of `happened`.
        """
        if not self.rules.second_price:
            return happened
        rival = self.rival_cpm(request_id)[:, None]
        wins = (seen.ecpm >= rival) & (seen.ecpm > 0.0)
        share = rival / torch.where(wins, seen.ecpm, 1.0)  # of the own bid
        paid = torch.where(wins, share * happened.ecpm, 0.0)
        settled = happened.clone(recurse=False)
        settled.ecpm, settled.payment = paid, paid
        return settled


class RealisedWorld(MarketWorld):
    """What training sees where rewards are realised: a click or conversion happens or not.

    One draw per (request, ad) by the rankers' probabilities, so the expectation is their eCPM.
    """

    def _measured_scale(self) -> float:
        return _spread(self.realise(self._logged_outcome()))

    def outcome(
        self, request_id: Int[Tensor, " B"], ad_id: Int[Tensor, "B K"], **options: Any
    ) -> Outcome:
        """Return what happens to candidates."""
        return self.realise(super().outcome(request_id, ad_id, **options))

    def realise(self, outcome: Outcome) -> Outcome:
        """Replace probabilities by draws, 0 or 1, and eCPM by what they bring per 1,000."""
        keys = outcome.request_id, outcome.ad_id
        drawn = []
        for event, probability in enumerate((outcome.pctr, outcome.pcvr)):
            draw = uniform(self.info.seed, Purpose.REALISED, *keys, torch.tensor(event))
            drawn.append((draw < probability).to(probability.dtype))
        realised = outcome.clone(recurse=False)
        realised.pctr, realised.pcvr = drawn
        realised.ecpm = ecpm(realised.pctr, realised.pcvr, outcome.bid, outcome.bid_type)
        realised.payment = realised.ecpm
        return realised


class MarketTruth(TruthEvaluator):
    """The hidden truth under a market's rules."""

    def outcome(self, request_id: Int[Tensor, " B"], ad_id: Int[Tensor, "B K"]) -> Outcome:
        """Return the true outcome of candidates `ad_id` (int64 [B, K]; -1 is scored as ad 0)."""
        market = self._world
        assert isinstance(market, MarketWorld)
        happened = super().outcome(request_id, ad_id)
        if not market.rules.second_price:
            return happened
        return market.settle(World.outcome(market, request_id, ad_id), happened, request_id)


def _spread(outcome: Outcome) -> float:
    spread = float(final_value(outcome).std())
    return spread if spread > 0.0 else 1.0


def log_view(world: World) -> World:
    """Return what pre-training sees of a market: the log as it was written."""
    return world.logged_world if isinstance(world, MarketWorld) else world


def truth_of(world: World) -> TruthEvaluator | None:
    """Return what would really have happened in a market; None where no truth is known."""
    if not world.info.has_truth:
        return None
    return MarketTruth(world) if isinstance(world, MarketWorld) else TruthEvaluator(world)


def train_view(world: World) -> World:
    """Return what training sees of a market; only realised rewards make a difference."""
    if isinstance(world, MarketWorld) and world.rules.realised:
        return RealisedWorld(world, world.rules)
    return world
