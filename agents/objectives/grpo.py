"""GRPO's advantage: the within-request z-score at every level (a baseline of GPR Tab. 3).

Dims: B requests, K candidates, L levels.
"""

from jaxtyping import Bool, Float
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from agents.objectives.surrogate import candidate_zscore, check_range, resolve_valid


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

    def __init__(self, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.in_keys = ["terminal_reward", "codes", "valid"]
        self.out_keys = ["advantage"]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the same TensorDict with `advantage` set."""
        advantage = grpo_advantages(
            tensordict["terminal_reward"],
            tensordict["codes"].shape[-1],
            self.eps,
            tensordict["valid"],
        )
        return tensordict.set("advantage", advantage.unsqueeze(-1))
