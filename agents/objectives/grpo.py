"""GRPO's advantage: the within-request z-score at every level (a baseline of GPR Tab. 3).

Dims: B requests, K candidates, L levels.
"""

from jaxtyping import Bool, Float
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from agents.objectives.surrogate import (
    TERMINALS,
    candidate_zscore,
    check_range,
    resolve_valid,
    terminal_advantage,
)


def grpo_advantages(
    terminal_reward: Float[Tensor, "B K"],
    num_levels: int,
    eps: float = 1e-6,
    valid: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, "B K L"]:
    """Return the z-score of R within each request, repeated at every level.

    The same number as HEPO's last level; no critic, no process reward.

    Args:
        terminal_reward: R of Eq. 5, any unit.
        num_levels: L, at least 1.
        eps: Added to the population standard deviation.
        valid: Candidates that count, all by default; the others get 0.

    Raises:
        ValueError: A wrong shape, num_levels < 1 or eps < 0.
    """
    if terminal_reward.ndim != 2:
        raise ValueError(
            f"terminal_reward must have shape [B, K], got {tuple(terminal_reward.shape)}"
        )
    check_range("num_levels", num_levels, 1)
    check_range("eps", eps, 0.0)
    score = candidate_zscore(terminal_reward, eps, resolve_valid(valid, terminal_reward))
    return score.unsqueeze(-1).repeat(1, 1, num_levels)


class GRPOAdvantage(TensorDictModuleBase):
    """Writes `advantage` [B, K, L, 1] from `terminal_reward` [B, K], `valid` [B, K] and `codes`."""

    def __init__(self, *, eps: float = 1e-6, terminal: str = "zscore") -> None:
        """Store eps and the kind of advantage, see `terminal_advantage`."""
        super().__init__()
        if terminal not in TERMINALS:
            raise ValueError(f"terminal must be one of {TERMINALS}, got {terminal!r}")
        self.eps = eps
        self.terminal = terminal
        self.in_keys = ["terminal_reward", "codes", "valid"]
        self.out_keys = ["advantage"]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the same TensorDict with `advantage` set."""
        reward, valid = tensordict["terminal_reward"], tensordict["valid"]
        num_levels = tensordict["codes"].shape[-1]
        score = terminal_advantage(self.terminal, reward, self.eps, resolve_valid(valid, reward))
        return tensordict.set("advantage", score[..., None, None].repeat(1, 1, num_levels, 1))
