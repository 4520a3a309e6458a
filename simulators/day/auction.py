"""Auctions: the candidates of a request compete for slots, pay on their event, and who gains what.

Position effects are separable (Edelman, Ostrovsky and Schwarz 2007; Varian 2007): slot s multiplies
the click probability of slot 0 by `position_effect[s]`. A conversion needs a click, so it scales
alike; an impression is an impression in every slot, so a CPM bid is worth the same in each.

Dims: B requests, K candidates, S slots. Money is float64 in the currency of the bids.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gpr_rl.checks import check_at_least, check_finite
from simulators.rewards.outcome import ecpm

CPM, CPC, OCPA = 0, 1, 2
"""Values of `bid_type`: pays per 1,000 impressions, per click, per conversion."""
MECHANISMS = ("first_price", "second_price", "gsp")
_DECIMALS = 6


@dataclass(frozen=True, kw_only=True)
class AuctionConfig:
    """The rules of an auction."""

    mechanism: Literal["first_price", "second_price", "gsp"] = "first_price"
    """`first_price`: a winner pays its bid. `gsp`: the smallest bid that keeps its slot against the
    next in rank. `second_price`: the smallest bid that beats the best loser (rank S + 1), the same
    for all winners; with one slot, Vickrey's auction."""
    num_slots: int = 1
    """S, ads shown per request at most."""
    reserve_cpm: float = 0.0
    """Smallest eCPM that takes part, and the least that a winner pays under `gsp` and
    `second_price`. Currency per 1,000 impressions."""
    position_effect: tuple[float, ...] | None = None
    """Click probability of each slot relative to slot 0, S entries: 1, then never rising, above 0.
    None: exp(-0.25 s), what the built-in world's hidden truth has for rare clicks."""

    def __post_init__(self) -> None:
        if self.mechanism not in MECHANISMS:
            raise ValueError(f"mechanism must be one of {MECHANISMS}, got {self.mechanism!r}")
        check_at_least(1, num_slots=self.num_slots)
        check_finite(0, reserve_cpm=self.reserve_cpm)
        effects = self.effects()
        if len(effects) != self.num_slots:
            raise ValueError(
                f"position_effect needs one entry per slot ({self.num_slots}), got {effects}"
            )
        falling = all(a >= b for a, b in itertools.pairwise(effects))
        if effects[0] != 1.0 or not falling or not effects[-1] > 0.0:
            raise ValueError(
                f"position_effect must start at 1, never rise and stay above 0, got {effects}"
            )

    def effects(self) -> tuple[float, ...]:
        """Return the click multiplier of each slot, S entries."""
        if self.position_effect is not None:
            return self.position_effect
        return tuple(math.exp(-0.25 * slot) for slot in range(self.num_slots))


@dataclass(frozen=True)
class AuctionResult:
    """Who won which slot at which price."""

    slot_candidate: Int[Tensor, "B S"]
    """int64, index into K; -1 where the slot stays empty."""
    price: Float[Tensor, "B S"]
    """Price per paid event in the unit of the bid: CPM per 1,000 impressions, CPC per click, OCPA
    per conversion. 0 in an empty slot."""
    price_cpm: Float[Tensor, "B S"]
    """Expected charge per 1,000 impressions in that slot, given the probabilities passed in."""
    score: Float[Tensor, "B K"]
    """eCPM of each candidate in slot 0, what candidates are ranked by; 0 where not valid."""


def _check(name: str, rule: str, value: Tensor, bad: Tensor) -> None:
    """Raise for the first bad entry."""
    if bad.any():
        row, candidate = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{name} {rule}, got {value[row, candidate].item()} in row {row}, candidate {candidate}"
        )


def run_auction(
    pctr: Float[Tensor, "B K"],
    pcvr: Float[Tensor, "B K"],
    bid: Float[Tensor, "B K"],
    bid_type: Int[Tensor, "B K"],
    config: AuctionConfig,
    valid: Bool[Tensor, "B K"] | None = None,
    tie_break: Float[Tensor, "B K"] | None = None,
) -> AuctionResult:
    """Return winners and prices of B independent auctions.

    Candidates are ranked by eCPM in slot 0 (`simulators.rewards.ecpm`). Comparisons, that with the
    reserve included, round eCPM to 1e-6; equal ones go by the smaller `tie_break`, then by the
    lower index. A candidate whose eCPM is below the reserve does not take part. A price set by
    another's score is that score over the winner's own eCPM per unit of bid, at least the reserve
    and never above the winner's bid. A score of 0 can win (and pays 0 unless the price is the bid).

    Probabilities are those in slot 0, bids not negative and in the unit of their type. Where a
    candidate is not `valid` (None: all are) the other tensors may hold anything.

    Raises:
        ValueError: NaN, infinite or negative bid, a probability outside [0, 1] or an unknown bid
            type, naming the row, the candidate and the value.
    """
    if valid is None:
        valid = torch.ones_like(bid_type, dtype=torch.bool)
    for name, rate in (("pctr", pctr), ("pcvr", pcvr)):
        _check(name, "must lie in [0, 1]", rate, valid & ~((rate >= 0.0) & (rate <= 1.0)))
    _check("bid", "must be finite and not negative", bid, valid & ~((bid >= 0.0) & bid.isfinite()))
    unknown = (bid_type < CPM) | (bid_type > OCPA)
    _check("bid_type", "must be 0 (CPM), 1 (CPC) or 2 (OCPA)", bid_type, valid & unknown)
    pctr, pcvr, bid = (x.double().where(valid, 0.0) for x in (pctr, pcvr, bid))
    score = ecpm(pctr, pcvr, bid, bid_type)
    compared = score.round(decimals=_DECIMALS)
    takes_part = valid & (compared >= round(config.reserve_cpm, _DECIMALS))
    order = _rank(compared.where(takes_part, -1.0), tie_break)  # [B, K]

    num_slots = config.num_slots
    missing = max(num_slots + 1 - order.shape[1], 0)
    ranked_score = score.gather(1, order).where(takes_part.gather(1, order), 0.0)
    ranked_score = torch.nn.functional.pad(ranked_score, (0, missing))
    slot = torch.nn.functional.pad(order, (0, missing))[:, :num_slots]  # [B, S]
    filled = torch.arange(num_slots, device=bid.device) < takes_part.sum(1, keepdim=True)
    if bid.shape[1] == 0:  # nothing to gather from
        empty = bid.new_zeros(len(bid), num_slots)
        return AuctionResult(slot - 1, empty, empty.clone(), score)

    own_bid = bid.gather(1, slot)
    rate = ecpm(pctr, pcvr, torch.ones_like(bid), bid_type).gather(1, slot)  # eCPM per unit of bid
    if config.mechanism == "first_price":
        price = own_bid
    else:
        first_rival = 1 if config.mechanism == "gsp" else num_slots
        rival = ranked_score[:, first_rival : num_slots + 1]  # [B, S] or, one for all, [B, 1]
        needed = rival.clamp_min(config.reserve_cpm) / rate.where(rate > 0.0, 1.0)
        price = torch.minimum(needed.where(rate > 0.0, 0.0), own_bid)
    effect = bid.new_tensor(config.effects())
    seen = torch.where(bid_type.gather(1, slot) == CPM, torch.ones_like(effect), effect)
    price = price.where(filled, 0.0)
    return AuctionResult(
        slot_candidate=slot.where(filled, -1),
        price=price,
        price_cpm=price * rate * seen,
        score=score,
    )


def _rank(score: Float[Tensor, "B K"], tie_break: Tensor | None) -> Int[Tensor, "B K"]:
    """Return candidate indices by falling score, then rising `tie_break`, then rising index."""
    if tie_break is None:
        return score.argsort(dim=1, descending=True, stable=True)
    by_draw = tie_break.argsort(dim=1, stable=True)
    return by_draw.gather(1, score.gather(1, by_draw).argsort(dim=1, descending=True, stable=True))


Event = Bool[Tensor, "*shape"] | Float[Tensor, "*shape"]
"""Whether something happened, or the probability that it does (then results are expectations)."""


def charges(
    price: Float[Tensor, "*shape"],
    bid_type: Int[Tensor, "*shape"],
    impression: Event,
    click: Event,
    conversion: Event,
) -> Float[Tensor, "*shape"]:
    """Return what is charged, in currency: each type pays on its own event.

    CPM: price / 1000 at the impression. CPC: price at the click. OCPA: price at the conversion.
    At bids in place of prices it is what the events are worth to advertisers, so what exceeds the
    charge is their surplus: never negative, as no price exceeds its bid.

    `price` is per paid event in the unit of the bid. A click was shown as well, a conversion also
    clicked.
    """
    price = price.double()
    return torch.where(
        bid_type == CPM,
        price / 1000.0 * impression,
        torch.where(bid_type == CPC, price * click, price * conversion),
    )
