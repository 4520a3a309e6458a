"""Replay of logged second-price auctions: what a bidder would have won and paid.

The log holds the highest competing bid of each auction (`market_price`), which is what a winner of
a second-price auction pays. Other bidders are taken as they were: they do not react. A log has a
row per auction, in order, with the columns click (0 or 1), market_price (at least 0) and pctr (in
[0, 1]). Others may be there and are not read.

Dims: n auctions. Money is in the unit of `market_price`, whatever the log has (iPinYou: CNY fen per
1,000 impressions, one price per impression, as that literature sums them).
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gpr_rl.checks import check_at_least, check_finite, check_positive

FloatArray = NDArray[np.float64]
_COLUMNS: dict[str, tuple[str, Callable[[FloatArray], NDArray[np.bool_]]]] = {
    "click": ("must be 0 or 1", lambda x: (x == 0) | (x == 1)),
    "market_price": ("must be finite and at least 0", lambda x: (x >= 0) & np.isfinite(x)),
    "pctr": ("must lie in [0, 1]", lambda x: (x >= 0) & (x <= 1)),
}


def check_log(log: pd.DataFrame) -> None:
    """Raise ValueError, naming column, row (counted from 0) and value, if a log can't be replayed.

    Finite numbers only; the rules are the module's. An empty log is fine.
    """
    for name, (rule, holds) in _COLUMNS.items():
        if name not in log:
            raise ValueError(f"log lacks the column {name!r}; it needs {', '.join(_COLUMNS)}")
        try:
            value = log[name].to_numpy(dtype=np.float64, na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise ValueError(f"log column {name!r} {rule}, and can't be read: {error}") from error
        good = holds(value)
        if not good.all():
            row = int((~good).argmax())
            raise ValueError(f"log column {name!r} {rule}, got {value[row]} in row {row}")


@runtime_checkable
class VectorBidder(Protocol):
    """A bidder that looks at nothing but the click probability: all bids at once."""

    def bids(self, pctr: FloatArray) -> FloatArray:
        """Return the bids of n auctions, [n], for click probabilities [n] in [0, 1]."""


@runtime_checkable
class Bidder(Protocol):
    """A bidder that is asked auction by auction, and may look at what is left."""

    def bid(self, pctr: float, remaining_budget: float, remaining_auctions: int) -> float:
        """Return the bid for one impression.

        Args:
            pctr: Click probability in [0, 1].
            remaining_budget: Not spent yet, in the unit of the bid.
            remaining_auctions: Auctions to come, this one included.
        """


AnyBidder = VectorBidder | Bidder | Callable[..., float]


@dataclass(frozen=True)
class ReplayResult:
    """What a bidder won of a log."""

    impressions: int
    """Auctions won."""
    clicks: int
    """Clicks on the impressions won."""
    cost: float
    """Sum of the market prices of the impressions won."""
    won: NDArray[np.bool_]
    """[n], per auction."""
    bids: FloatArray
    """[n], per auction."""


def run(log: pd.DataFrame, bidder: AnyBidder, budget: float) -> ReplayResult:
    """Let a bidder bid in every auction of a log, in its order, and return what it wins.

    It wins where its bid is at least the market price and what is left of its budget is too; it
    pays the market price. An auction that it can't afford is passed over; a cheaper one later may
    still be won.

    Args:
        log: As in the module. May be empty.
        bidder: `VectorBidder`, `Bidder`, or a plain function. A function or a `bid` method gets as
            many of (pctr, remaining_budget, remaining_auctions) as it has positional parameters;
            pctr alone is enough.
        budget: At least 0; infinity for no limit.

    Raises:
        ValueError: A column is missing or holds a bad value (named with its row), a bad budget, or
            a bid that is NaN or of the wrong shape.
        TypeError: Not a bidder.
    """
    check_log(log)
    check_at_least(0, budget=budget)
    price = log["market_price"].to_numpy(dtype=np.float64)
    pctr = log["pctr"].to_numpy(dtype=np.float64)
    if isinstance(bidder, VectorBidder):
        bids = np.asarray(bidder.bids(pctr), dtype=np.float64)
        if bids.shape != pctr.shape:
            raise ValueError(f"bids must return shape {pctr.shape}, got {bids.shape}")
        if np.isnan(bids).any():
            raise ValueError(f"bid of auction {int(np.isnan(bids).argmax())} is NaN")
        won = _affordable(price, bids >= price, float(budget))
    else:
        bids, won = _ask_one_by_one(price, pctr, bidder, float(budget))
    clicks = log["click"].to_numpy()[won].sum()
    return ReplayResult(int(won.sum()), int(clicks), float(price[won].sum()), won, bids)


def _affordable(price: FloatArray, beats: NDArray[np.bool_], budget: float) -> NDArray[np.bool_]:
    """Return which auctions are won, [n], of those where the bid beats the price.

    Until the first one that can't be paid a running difference says it all; subtracting one after
    the other, as a loop would, gives the loop's very bits. From there on, one plain loop.
    """
    won = np.zeros(len(price), dtype=bool)
    at = beats.nonzero()[0]
    left = np.subtract.accumulate(np.concatenate([[budget], price[at]]))  # before each, and after
    short = left[:-1] < price[at]
    first = int(short.argmax()) if short.any() else len(at)
    won[at[:first]] = True
    rest = at[first:]
    rest = rest[price[rest] <= left[first]]  # what is left only falls
    remaining = float(left[first])
    for i, cost in zip(rest.tolist(), price[rest].tolist(), strict=True):
        if remaining >= cost:
            remaining -= cost
            won[i] = True
    return won


def _ask_one_by_one(
    price: FloatArray, pctr: FloatArray, bidder: Any, budget: float
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Return the bids and wins, [n], of a bidder that is asked in turn."""
    ask = bidder.bid if hasattr(bidder, "bid") else bidder
    if not callable(ask):
        raise TypeError(
            f"a bidder has a method `bids` or `bid`, or is a function; got {type(bidder).__name__}"
        )
    num_arguments = _positional(ask)
    bids = np.zeros(len(price))
    won = np.zeros(len(price), dtype=bool)
    remaining = budget
    for i, (cost, probability) in enumerate(zip(price.tolist(), pctr.tolist(), strict=True)):
        state = (probability, remaining, len(price) - i)
        bid = float(ask(*state[:num_arguments]))
        if math.isnan(bid):
            raise ValueError(f"bid of auction {i} is NaN")
        bids[i] = bid
        if bid >= cost and remaining >= cost:
            won[i] = True
            remaining -= cost
    return bids, won


def _positional(function: Callable[..., float]) -> int:
    """Return how many of the three facts a bidder's function takes."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some built-in functions have no signature
        return 1
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 3
    # A default marks a parameter of the function's own, unless the name is one of ours.
    ours = ("pctr", "remaining_budget", "remaining_auctions")
    taken = [
        p
        for p in parameters
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        and (p.default is p.empty or p.name in ours)
    ]
    if not 1 <= len(taken) <= 3:
        raise TypeError(
            f"a bidder takes 1 to 3 positional arguments ({', '.join(ours)}), got {len(taken)}"
        )
    return len(taken)


@dataclass(frozen=True)
class ConstantBidder:
    """Bids the same for every impression."""

    price: float
    """In the unit of the log's market price."""

    def __post_init__(self) -> None:
        check_finite(0, price=self.price)

    def bids(self, pctr: FloatArray) -> FloatArray:
        """Return the bids of n auctions, [n]."""
        return np.full(len(pctr), self.price)


@dataclass(frozen=True)
class MaxCPCBidder:
    """Bids the most that a click may cost times its probability (Mcpc; truthful per click)."""

    max_cpc: float
    """Per click, in the unit of the log's market price."""

    def __post_init__(self) -> None:
        check_finite(0, max_cpc=self.max_cpc)

    @classmethod
    def fit(cls, log: pd.DataFrame) -> "MaxCPCBidder":
        """Take as maximum what a click costs who wins every auction of a training log.

        Raises:
            ValueError: A bad log, or one without a click.
        """
        check_log(log)
        clicks = float(log["click"].sum())
        if clicks == 0.0:
            raise ValueError("a log without a click says nothing of the cost of one")
        return cls(float(log["market_price"].sum()) / clicks)

    def bids(self, pctr: FloatArray) -> FloatArray:
        """Return the bids of n auctions, [n]."""
        return self.max_cpc * pctr


@dataclass(frozen=True)
class LinearBidder:
    """Bids b0 * pctr / mean pctr (Lin; Perlich et al. 2012)."""

    base_bid: float
    """b0, the bid for an average impression, in the unit of the log's market price."""
    mean_pctr: float
    """Mean click probability of the training log, above 0."""

    def __post_init__(self) -> None:
        check_finite(0, base_bid=self.base_bid)
        check_positive(mean_pctr=self.mean_pctr)

    def bids(self, pctr: FloatArray) -> FloatArray:
        """Return the bids of n auctions, [n]."""
        return self.base_bid * pctr / self.mean_pctr


def tune_linear(
    log: pd.DataFrame, budget: float, base_bids: Sequence[float] = tuple(range(2, 301, 2))
) -> LinearBidder:
    """Return the linear bidder with the most clicks on a training log; of equals, the lowest bid.

    The log has a positive pctr, and the caller scales the budget to its length. The default of
    `base_bids` suits iPinYou, whose prices are 0..300.
    """
    mean_pctr = float(log["pctr"].mean()) if len(log) else 0.0
    tried = [LinearBidder(base_bid, mean_pctr) for base_bid in base_bids]
    return max(tried, key=lambda bidder: (run(log, bidder, budget).clicks, -bidder.base_bid))
