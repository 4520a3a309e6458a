"""What every computation over candidates shares: checks of its arguments, and sums over who counts.

Dims: B requests, K candidates. `valid` [B, K] is True where a candidate exists; the other
candidates may hold anything, -inf and NaN included, and are replaced before any arithmetic.
"""

import math
from collections.abc import Container, Sequence

import torch
from jaxtyping import Bool, Float
from tensordict import TensorDict
from torch import Tensor

REDUCTIONS = ("mean", "sum", "none")
"""Of losses over candidates, see `over_candidates`."""


class AdBaseline:
    """Running mean of the terminal reward of every ad, keyed by its id.

    An ad that was never drawn has the mean of all; 0 before anything was.

    Args:
        num_ads: N.
        decay: Of what was seen before, per update.
        device: Of the rollouts.
    """

    def __init__(
        self, num_ads: int, decay: float = 0.99, device: torch.device | str = "cpu"
    ) -> None:
        self._decay = decay
        self.total, self.count = torch.zeros(2, num_ads, device=device).unbind()

    def subtract(self, data: TensorDict) -> float:
        """Take the ads' means off a rollout's terminal rewards in place, then learn from them.

        Returns how often the candidates' ads were drawn before, on average, decay included.
        """
        valid = data["valid"]
        ad_id, reward = data["ad_id"].clamp_min(0), data["terminal_reward"]
        of_all = self.total.sum() / self.count.sum().clamp_min(1e-9)
        mean = torch.where(self.count > 0, self.total / self.count.clamp_min(1e-9), of_all)
        seen = self.count[ad_id[valid]].mean().nan_to_num().item()
        left = (reward - mean[ad_id]).where(valid, 0.0)
        self.total *= self._decay
        self.count *= self._decay
        self.total.index_add_(0, ad_id[valid], reward[valid].to(self.total.dtype))
        self.count.index_add_(0, ad_id[valid], torch.ones_like(ad_id[valid], dtype=torch.float32))
        data["terminal_reward"] = left
        step_reward = data["next", "reward"].clone()
        step_reward[:, :, -1, 0] = left
        data["next", "reward"] = step_reward
        return seen


def check_shape(
    name: str, tensor: Tensor, letters: str, expected: Sequence[int] | None = None
) -> None:
    """Raise ValueError unless `tensor` has a dimension per letter, of the `expected` sizes."""
    shape, sizes = tuple(tensor.shape), "" if expected is None else f" = {tuple(expected)}"
    if len(shape) != len(letters.split(",")) or (expected is not None and shape != tuple(expected)):
        raise ValueError(f"{name} must have shape [{letters}]{sizes}, got {shape}")


def check_range(
    name: str, value: int | float, low: int | float, high: int | float = math.inf
) -> None:
    """Raise ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value}")


def check_above(name: str, value: float, low: float = 0.0) -> None:
    """Raise ValueError unless value > low."""
    if not value > low:
        raise ValueError(f"{name} must be above {low:g}, got {value}")


def check_choice(name: str, value: object, choices: Container[str]) -> None:
    """Raise ValueError unless `value` is one of the names in `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def check_clip(clip: float) -> None:
    """Raise ValueError unless 0 < clip < 1."""
    if not 0.0 < clip < 1.0:
        raise ValueError(f"clip must lie in (0, 1), got {clip}")


def resolve_valid(valid: Tensor | None, like: Tensor) -> Bool[Tensor, "B K"]:
    """Return `valid`, checked to be bool [B, K], or all True where None; `like` is [B, K, ...]."""
    if valid is None:
        return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
    check_shape("valid", valid, "B, K", like.shape[:2])
    if valid.dtype != torch.bool:
        raise ValueError(f"valid must be bool, got {valid.dtype}")
    return valid


def keep_valid(x: Tensor, valid: Bool[Tensor, "B K"]) -> Tensor:
    """Return x [B, K, ...] with 0 at invalid candidates, whatever they held; no gradient there."""
    return torch.where(valid.reshape(valid.shape + (1,) * (x.ndim - 2)), x, 0.0)


def mean_over_candidates(
    per_level: Float[Tensor, "B K *levels"], valid: Bool[Tensor, "B K"]
) -> Float[Tensor, ""]:
    """Return the mean over valid candidates of the sum over levels, if any; 0 if none is valid."""
    return keep_valid(per_level, valid).sum() / valid.sum().clamp_min(1)


def over_candidates(
    per_level: Float[Tensor, "B K L"], valid: Bool[Tensor, "B K"], reduction: str
) -> Float[Tensor, "..."]:
    """Return the sums over levels as torchrl reduces losses.

    `mean` and `sum` are over valid candidates, `none` is [B, K] with 0 where not valid.

    Raises:
        ValueError: Another reduction.
    """
    check_choice("reduction", reduction, REDUCTIONS)
    if reduction == "mean":
        return mean_over_candidates(per_level, valid)
    per_candidate = keep_valid(per_level, valid).sum(-1)
    return per_candidate.sum() if reduction == "sum" else per_candidate


def next_values(value: Float[Tensor, "B K L 1"]) -> Float[Tensor, "B K L 1"]:
    """Return the value of what follows each step of a path: 0 after the last."""
    return torch.cat([value[:, :, 1:], torch.zeros_like(value[:, :, :1])], dim=2)


def path_transitions(terminal_reward: Float[Tensor, "B K"], num_levels: int) -> TensorDict:
    """Return `reward`, `done` and `terminated` [B, K, L, 1] of paths that are paid at their end."""
    shape = (*terminal_reward.shape, num_levels, 1)
    last = torch.zeros(shape, dtype=torch.bool, device=terminal_reward.device)
    last[:, :, -1] = True
    reward = torch.where(last, terminal_reward[..., None, None], 0.0)
    entries = {"reward": reward, "done": last, "terminated": last.clone()}
    return TensorDict(entries, batch_size=terminal_reward.shape[:1])
