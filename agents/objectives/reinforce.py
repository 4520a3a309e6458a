"""REINFORCE with the other candidates as baseline (RLOO; Kool et al. 2019, Ahmadian et al. 2024).

Dims: B requests, K candidates, L levels.
"""

import torch
from jaxtyping import Bool, Float
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from agents.objectives.surrogate import (
    check_range,
    keep_valid,
    log_ratio_and_advantage,
    mean_over_candidates,
    resolve_valid,
)

_MAX_LOG_RATIO = 20.0


def leave_one_out_advantages(
    terminal_reward: Float[Tensor, "B K"],
    num_levels: int,
    valid: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, "B K L"]:
    """Return R less the mean of the request's other valid candidates, repeated at every level.

    Args:
        terminal_reward: R of Eq. 5, scaled across requests: nothing here divides by a deviation.
        num_levels: L, at least 1.
        valid: Candidates that count, all by default; the others get 0, as a single one does.

    Raises:
        ValueError: A wrong shape or num_levels < 1.
    """
    if terminal_reward.ndim != 2:
        raise ValueError(
            f"terminal_reward must have shape [B, K], got {tuple(terminal_reward.shape)}"
        )
    check_range("num_levels", num_levels, 1)
    mask = resolve_valid(valid, terminal_reward)
    reward = keep_valid(terminal_reward, mask)
    count = mask.sum(-1, keepdim=True)
    # R - mean of the others = (R - mean of all) n / (n - 1), exactly 0 where all are equal.
    high = torch.where(mask, reward, -torch.inf).amax(-1, keepdim=True)
    low = torch.where(mask, reward, torch.inf).amin(-1, keepdim=True)
    centred = reward - reward.sum(-1, keepdim=True) / count.clamp_min(1)
    advantage = centred * count / (count - 1).clamp_min(1)
    advantage = torch.where(mask & (high > low), advantage, 0.0)
    return advantage.unsqueeze(-1).repeat(1, 1, num_levels)


class LeaveOneOutAdvantage(TensorDictModuleBase):
    """Writes `advantage` [B, K, L, 1] from `terminal_reward` [B, K], `valid` [B, K] and `codes`."""

    def __init__(self) -> None:
        super().__init__()
        self.in_keys = ["terminal_reward", "codes", "valid"]
        self.out_keys = ["advantage"]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the same TensorDict with `advantage` set."""
        advantage = leave_one_out_advantages(
            tensordict["terminal_reward"], tensordict["codes"].shape[-1], tensordict["valid"]
        )
        return tensordict.set("advantage", advantage.unsqueeze(-1))


def reinforce_surrogate(
    log_prob: Float[Tensor, "B K L"],
    behavior_log_prob: Float[Tensor, "B K L"],
    advantage: Float[Tensor, "B K L"],
    valid: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, ""]:
    """Return -mean_candidates sum_l rho_l A_l with ratios that no clip bounds.

    Where the policy still is the behaviour the gradient is REINFORCE's, -A grad log pi; in later
    epochs the ratio corrects for the difference. A ratio above e^20 is taken as e^20, so that it
    can't overflow.

    Args:
        log_prob: log pi(z_l) of the chosen codes, nats; carries the gradient.
        behavior_log_prob: Under the distribution that drew them. A constant.
        advantage: A_l. A constant.
        valid: Candidates that count, all by default.

    Raises:
        ValueError: A wrong shape.
    """
    log_ratio, advantage, mask = log_ratio_and_advantage(
        log_prob, behavior_log_prob, advantage, valid
    )
    return -mean_over_candidates(log_ratio.clamp_max(_MAX_LOG_RATIO).exp() * advantage, mask)
