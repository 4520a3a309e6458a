"""Pacing: spreads each owner's spending over the day, by throttling or by lower bids.

Both compare the share of the budget that is spent with the share of the day's expected traffic
that has gone by (spending in proportion to forecast traffic; Agarwal, Ghosh, Wei and You 2014,
"Budget pacing for targeted online advertisements at LinkedIn").

Dims: B requests (or candidates), M markets, A owners.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gpr_rl.checks import check_at_least, check_finite

KINDS = ("none", "throttling", "pid")


@dataclass(frozen=True, kw_only=True)
class PacingConfig:
    """Knobs of throttling and of the PID multiplier."""

    interval: float = 1.0 / 288.0
    """Least share of the day's traffic between two adjustments, so that results do not hang on how
    often `update` is called. Agarwal et al. adjust every minute; five minutes here."""
    minimum: float = 0.005
    """Smallest multiplier, above 0 so that a paced owner can come back. Ours."""
    start: float = 0.1
    """Participation probability in the morning under throttling (slow start, Agarwal et al.)."""
    step: float = 0.1
    """Throttling: relative change of the probability per adjustment (10 %, Agarwal et al.)."""
    proportional_gain: float = 40.0
    """PID on the log multiplier; error in shares of the budget. Where spending follows the bid one
    to one, 40 and 400 are critical damping with a time constant of a twentieth of a day."""
    integral_gain: float = 400.0
    """Per day of traffic. See `proportional_gain`."""
    derivative_gain: float = 0.02
    """In days of traffic; small, because single charges make the derivative noisy."""

    def __post_init__(self) -> None:
        for name in ("interval", "proportional_gain", "integral_gain", "derivative_gain"):
            check_finite(0, **{name: getattr(self, name)})
        if not 0.0 < self.minimum <= self.start <= 1.0:
            raise ValueError(
                f"0 < minimum <= start <= 1 must hold, got minimum {self.minimum}, "
                f"start {self.start}"
            )
        if not 0.0 <= self.step < 1.0:
            raise ValueError(f"step must lie in [0, 1), got {self.step}")


class Pacing:
    """One multiplier in [minimum, 1] per market and owner.

    `throttling`: the owner takes part in an auction with this probability; raised by a factor
    1 + step when spending is behind schedule, lowered by 1 - step when ahead.
    `pid`: bids are multiplied by it. log m = kp e + ki I + kd de/dt with e = schedule - spent share
    and I the integral of e over the day; m is clamped to [minimum, 1] and ki I to
    [log minimum, 0], so a long time at a bound does not wind the integral up.
    `none`: the multiplier is 1 and nothing changes.
    """

    def __init__(
        self,
        kind: Literal["none", "throttling", "pid"],
        daily_budget: Float[Tensor, " A"],
        num_markets: int = 1,
        config: PacingConfig | None = None,
    ) -> None:
        """Start a day; budgets are in currency per day, and one of 0 counts as spent."""
        if kind not in KINDS:
            raise ValueError(f"pacing must be one of {KINDS}, got {kind!r}")
        check_at_least(1, num_markets=num_markets)
        self.kind = kind
        self.config = config or PacingConfig()
        self._budget = daily_budget.double()
        shape = (num_markets, len(daily_budget))
        self.multiplier = self._budget.new_ones(shape)
        self._integral = self._budget.new_zeros(shape)
        self._error = self._budget.new_zeros(shape)
        self._elapsed = self._budget.new_zeros(num_markets)
        self.reset()

    def update(self, spent: Float[Tensor, "M A"], day_elapsed: Float[Tensor, " M"]) -> None:
        """Adjust the multipliers of markets where at least `interval` of traffic has gone by.

        `spent` is `Budgets.spent`, `day_elapsed` the share of the day's expected traffic that has
        gone by, in [0, 1].
        """
        if self.kind == "none":
            return
        if not ((day_elapsed >= 0.0) & (day_elapsed <= 1.0)).all():
            raise ValueError(f"day_elapsed must lie in [0, 1], got {day_elapsed.tolist()}")
        passed = day_elapsed.double() - self._elapsed
        due = ((passed > 0.0) & (passed >= self.config.interval - 1e-12))[:, None]  # [M, 1]
        # A budget of 0 is spent from the start; an unlimited one never is.
        share = (spent.double() / self._budget).where(self._budget > 0.0, 1.0)
        error = day_elapsed.double()[:, None] - share
        if self.kind == "throttling":
            step = self.config.step
            changed = self.multiplier * torch.where(error > 0.0, 1.0 + step, 1.0 - step)
        else:
            changed = self._pid(error, passed[:, None], due)
        changed = changed.clamp(self.config.minimum, 1.0)
        self.multiplier = torch.where(due, changed, self.multiplier)
        self._elapsed = torch.where(due[:, 0], day_elapsed.double(), self._elapsed)

    def _pid(self, error: Tensor, passed: Tensor, due: Tensor) -> Tensor:
        """Return the controller's multiplier [M, A] and move its memory in the due markets."""
        config = self.config
        lowest = math.log(config.minimum)
        integral = (self._integral + config.integral_gain * error * passed).clamp(lowest, 0.0)
        slope = (error - self._error) / passed.where(passed > 0.0, 1.0)
        self._integral = torch.where(due, integral, self._integral)
        self._error = torch.where(due, error, self._error)
        log_multiplier = (
            config.proportional_gain * error + integral + config.derivative_gain * slope
        )
        return log_multiplier.clamp(lowest, 0.0).exp()

    def participates(
        self,
        market: Int[Tensor, "*shape"],
        owner: Int[Tensor, "*shape"],
        uniforms: Float[Tensor, "*shape"],
    ) -> Bool[Tensor, "*shape"]:
        """Return who takes part: `uniforms` in (0, 1) below the multiplier; all unless throttled.

        The draws are the caller's, keyed by request and owner.
        """
        if self.kind != "throttling":
            return torch.ones_like(owner, dtype=torch.bool)
        return uniforms < self.multiplier[market, owner]

    def bid_multiplier(
        self, market: Int[Tensor, "*shape"], owner: Int[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"]:
        """Return the factor of each bid, float64 in (0, 1]; ones unless `pid`."""
        if self.kind != "pid":
            return torch.ones_like(owner, dtype=torch.float64)
        return self.multiplier[market, owner]

    def reset(self, markets: Bool[Tensor, " M"] | None = None) -> None:
        """Begin a new day, in the given markets or in all."""
        rows = slice(None) if markets is None else markets
        self.multiplier[rows] = self.config.start if self.kind == "throttling" else 1.0
        self._integral[rows] = 0.0
        self._error[rows] = 0.0
        self._elapsed[rows] = 0.0
