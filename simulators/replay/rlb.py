"""Budget-aware bidding by dynamic programming (RLB).

Cai, Ren, Zhang, Malialis, Wang, Yu and Guo, "Real-Time Bidding by Reinforcement Learning in
Display Advertising", WSDM 2017, with m(d) the probability that the market price is d:

    V(t, b) = max_a  sum_{d <= a} m(d) [theta + V(t-1, b-d)] + sum_{d > a} m(d) V(t-1, b)
    bid(t, b, x) = the largest a <= b with theta(x) + V(t-1, b-a) - V(t-1, b) >= 0

t auctions to come (the present one included), b budget left, theta the mean click probability and
theta(x) that of the impression. V rises with b, so a click's gain falls with the price paid for it
and the maximum over a is reached by keeping the positive terms of the sum.

Dims: T horizon, C largest budget in the table, D largest price; both in steps of price.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gpr_rl.checks import check_at_least, check_positive
from simulators.replay.replay import FloatArray, check_log

_SLACK = 1e-9
"""Relative; a budget of 0.3 holds three steps of 0.1."""


@dataclass(frozen=True, kw_only=True)
class RLBConfig:
    """Size of the table of values."""

    horizon: int = 500
    """T, the most auctions to come that the table knows. A longer horizon (t, b) bids as
    (T, b T/t), the paper's mapping of actions for large scale (RLB-NN-MapA) without the network."""
    max_budget: int = 10_000
    """C, the largest budget in the table, in price steps. A larger one is mapped likewise, to fewer
    auctions. The table takes 8 T C bytes, the default 40 MB."""
    num_prices: int = 300
    """D at most. Whole prices up to this are taken as they are (iPinYou has 0..300); otherwise a
    step is the largest price over this, and prices are rounded up to steps."""

    def __post_init__(self) -> None:
        check_at_least(1, **vars(self))


class RLBBidder:
    """Bids by the budget and the auctions that are left. Make one with `fit`."""

    def __init__(
        self,
        market_pdf: FloatArray,
        mean_pctr: float,
        price_step: float = 1.0,
        config: RLBConfig | None = None,
    ) -> None:
        """Compute the table of values.

        `market_pdf` [D + 1] are the probabilities of market prices 0..D in steps, `mean_pctr` is
        theta, and `price_step` one step of price in the unit of the log.
        """
        config = config or RLBConfig()
        if market_pdf.ndim != 1 or not len(market_pdf) or not (market_pdf >= 0).all():
            raise ValueError("market_pdf must be a row of probabilities, none of them negative")
        if not math.isclose(float(market_pdf.sum()), 1.0, rel_tol=1e-6):
            raise ValueError(f"market_pdf must sum to 1, got {market_pdf.sum()}")
        if not 0.0 <= mean_pctr <= 1.0:
            raise ValueError(f"mean_pctr must lie in [0, 1], got {mean_pctr}")
        check_positive(price_step=price_step)
        self.price_step = price_step
        self.max_price = len(market_pdf) - 1
        self.config = config
        self.value = value_table(market_pdf, mean_pctr, config.horizon, config.max_budget)

    @classmethod
    def fit(cls, log: pd.DataFrame, config: RLBConfig | None = None) -> "RLBBidder":
        """Take the histogram of market prices and the mean pctr of a training log.

        Raises:
            ValueError: A bad log, or an empty one.
        """
        config = config or RLBConfig()
        check_log(log)
        if not len(log):
            raise ValueError("RLB needs market prices, and the training log is empty")
        price = log["market_price"].to_numpy(dtype=np.float64)
        whole = bool((price == np.floor(price)).all()) and price.max() <= config.num_prices
        step = 1.0 if whole else float(price.max()) / config.num_prices
        steps = np.ceil(price / step * (1 - _SLACK)).astype(np.int64)
        pdf = np.bincount(steps) / len(price)
        return cls(pdf, float(log["pctr"].mean()), step, config)

    def bid(self, pctr: float, remaining_budget: float, remaining_auctions: int) -> float:
        """Return the bid for one impression, in the unit of the log; see `Bidder`."""
        budget = remaining_budget / self.price_step * (1 + _SLACK)  # in steps
        if budget >= remaining_auctions * self.max_price:  # can pay for all that may come
            return self.max_price * self.price_step
        largest = self.value.shape[1] - 1
        scale = min(self.config.horizon / remaining_auctions, largest / max(budget, 1.0), 1.0)
        auctions = max(int(remaining_auctions * scale), 1)
        left = min(int(budget * (auctions / remaining_auctions)), largest)
        later = self.value[auctions - 1, : left + 1]
        # The least budget after this auction that, with the click, is worth today's.
        floor = int(later.searchsorted(later[left] - pctr - 1e-12))
        return min(left - floor, self.max_price) * self.price_step


def value_table(
    market_pdf: FloatArray, mean_pctr: float, horizon: int, max_budget: int
) -> FloatArray:
    """Return V(t, b) for t in 0..horizon - 1 and b in 0..max_budget, [T, C + 1], in clicks."""
    value = np.zeros((horizon, max_budget + 1))
    gain = np.empty(max_budget + 1)
    prices = [d for d in market_pdf.nonzero()[0].tolist() if d <= max_budget]
    for t in range(1, horizon):
        before, now = value[t - 1], value[t]
        now[:] = before
        threshold = before - mean_pctr  # winning at d pays where V(t-1, b-d) is above it
        for d in prices:
            part = gain[d:]
            np.subtract(before[: len(part)], threshold[d:], out=part)
            np.maximum(part, 0.0, out=part)
            part *= market_pdf[d]
            now[d:] += part
    return value
