"""The advantage that a candidate's reward gives, within its request or its batch (GPR Eq. 8).

Dims: B requests, K candidates, L levels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from tensordict.nn import TensorDictModule
from torch import Tensor

from agents.candidates import check_choice, check_range, keep_valid, resolve_valid
from agents.shared_config import SharedConfig

TERMINALS = ("zscore", "mean", "batch")


@dataclass(frozen=True, kw_only=True)
class TerminalConfig(SharedConfig):
    """The dial of hepo, hepo_terminal, grpo, ecpo and gbpo."""

    terminal: str = "zscore"
    """HEPO's and GRPO's advantage from R: `zscore` within the request (Eq. 8), `mean` (no division
    by the deviation) or `batch` (z-score over the whole batch)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("terminal", self.terminal, TERMINALS)


def terminal_advantage(
    kind: str, terminal_reward: Float[Tensor, "B K"], eps: float, valid: Bool[Tensor, "B K"]
) -> Float[Tensor, "B K"]:
    """Return the advantage that R gives: `zscore` (Eq. 8), `mean` or `batch`.

    Raises:
        ValueError: Another kind.
    """
    check_choice("terminal", kind, TERMINALS)
    if kind == "zscore":
        return candidate_zscore(terminal_reward, eps, valid)
    if kind == "mean":
        return candidate_centred(terminal_reward, valid)
    flat = candidate_zscore(terminal_reward.reshape(1, -1), eps, valid.reshape(1, -1))
    return flat.reshape(terminal_reward.shape)


def candidate_zscore(
    terminal_reward: Float[Tensor, "B K"], eps: float, valid: Bool[Tensor, "B K"]
) -> Float[Tensor, "B K"]:
    """Return (R - mean_K) / (std_K + eps) within each request (GPR Eq. 8, last level).

    Population std (correction 0) over the valid candidates. Exactly 0 for equal rewards, for a
    single candidate and where not valid.
    """
    centred = candidate_centred(terminal_reward, valid)
    count = valid.sum(-1, keepdim=True).clamp_min(1)
    std = (centred.square().sum(-1, keepdim=True) / count).sqrt()
    differs = (centred != 0).any(-1, keepdim=True)
    return centred / torch.where(differs, std + eps, 1.0)


def candidate_centred(
    terminal_reward: Float[Tensor, "B K"], valid: Bool[Tensor, "B K"]
) -> Float[Tensor, "B K"]:
    """Return R - mean_K within each request, exactly 0 for equal rewards and where not valid."""
    count = valid.sum(-1, keepdim=True).clamp_min(1)
    reward = keep_valid(terminal_reward, valid)
    # The rounding of the mean is no signal: compare the rewards themselves.
    high = torch.where(valid, reward, -math.inf).amax(-1, keepdim=True)
    low = torch.where(valid, reward, math.inf).amin(-1, keepdim=True)
    centred = reward - reward.sum(-1, keepdim=True) / count
    return torch.where(valid & (high > low), centred, 0.0)


def at_every_level(score: Float[Tensor, "B K"], num_levels: int) -> Float[Tensor, "B K L"]:
    """Return a candidate's score as the advantage of each of its levels, at least one."""
    check_range("num_levels", num_levels, 1)
    return score.unsqueeze(-1).repeat(1, 1, num_levels)


class LevelAdvantage(TensorDictModule):
    """Writes `advantage` [B, K, L, 1] from `terminal_reward` [B, K], `codes` and `valid` [B, K]."""

    def __init__(self, score: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Take what makes the advantages [B, K] of rewards and of which candidates are valid."""

        def at_each(reward: Tensor, codes: Tensor, valid: Tensor) -> Tensor:
            advantage = score(reward, resolve_valid(valid, reward))
            return at_every_level(advantage, codes.shape[-1]).unsqueeze(-1)

        super().__init__(
            at_each, in_keys=["terminal_reward", "codes", "valid"], out_keys=["advantage"]
        )
