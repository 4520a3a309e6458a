"""GRPO's advantage: the within-request z-score at every level (a baseline of GPR Tab. 3).

Dims: B requests, K candidates, L levels.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from agents.candidates import check_choice, check_range, check_shape, resolve_valid
from agents.objectives.surrogate import SurrogateConfig, SurrogateLoss
from agents.objectives.terminal import (
    TERMINALS,
    LevelAdvantage,
    TerminalConfig,
    at_every_level,
    candidate_zscore,
    terminal_advantage,
)
from agents.registry import Method, register_method


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(SurrogateConfig, TerminalConfig):
    """The dials of grpo, grpo_mean, ecpo and gbpo: none of their own."""


def grpo_advantages(
    terminal_reward: Float[Tensor, "B K"],
    num_levels: int,
    eps: float = 1e-6,
    valid: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, "B K L"]:
    """Return the z-score of R within each request, repeated at every level.

    The same number as HEPO's last level; no critic, no process reward. R may have any unit, `eps`
    is added to the population standard deviation, and candidates that are not `valid` get 0.

    Raises:
        ValueError: A wrong shape, num_levels < 1 or eps < 0.
    """
    check_shape("terminal_reward", terminal_reward, "B, K")
    check_range("eps", eps, 0.0)
    score = candidate_zscore(terminal_reward, eps, resolve_valid(valid, terminal_reward))
    return at_every_level(score, num_levels)


class GRPOAdvantage(LevelAdvantage):
    """Writes `advantage` [B, K, L, 1] from `terminal_reward` [B, K], `valid` [B, K] and `codes`."""

    def __init__(self, *, eps: float = 1e-6, terminal: str = "zscore") -> None:
        """Store eps and the kind of advantage, see `terminal_advantage`."""
        check_choice("terminal", terminal, TERMINALS)
        super().__init__(lambda reward, valid: terminal_advantage(terminal, reward, eps, valid))


@register_method("grpo", config=GRPOConfig)
def grpo(config: GRPOConfig, num_levels: int) -> Method:
    """The within-request z-score at every level; no critic."""
    return Method(GRPOAdvantage(terminal=config.terminal), SurrogateLoss.of(config))


@register_method("grpo_mean", config=GRPOConfig)
def grpo_mean(config: GRPOConfig, num_levels: int) -> Method:
    """GRPO without the division by the deviation."""
    return Method(GRPOAdvantage(terminal="mean"), SurrogateLoss.of(config))
