"""What the policy objectives share: the z-score, the clipped surrogate and its checks (GPR 3.3).

Dims: B requests, K candidates, L levels. `valid` [B, K] is True where a candidate exists; the other
candidates may hold anything, -inf and NaN included, and are replaced before any arithmetic.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def check_shape(name: str, tensor: Tensor, expected: Sequence[int], letters: str) -> None:
    """Raise ValueError unless `tensor` has the shape `expected`, `letters` in the message."""
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(
            f"{name} must have shape [{letters}] = {tuple(expected)}, got {tuple(tensor.shape)}"
        )


def check_range(
    name: str, value: int | float, low: int | float, high: int | float = math.inf
) -> None:
    """Raise ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value}")


def check_above(name: str, value: float, low: float) -> None:
    """Raise ValueError unless value > low."""
    if not value > low:
        raise ValueError(f"{name} must be above {low:g}, got {value}")


def check_clip(clip: float) -> None:
    """Raise ValueError unless 0 < clip < 1."""
    if not 0.0 < clip < 1.0:
        raise ValueError(f"clip must lie in (0, 1), got {clip}")


def resolve_valid(valid: Tensor | None, like: Tensor) -> Bool[Tensor, "B K"]:
    """Return `valid`, or all True where it is None; `like` is any tensor [B, K, ...].

    Raises:
        ValueError: `valid` has another shape than [B, K] or is not bool.
    """
    if valid is None:
        return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
    check_shape("valid", valid, like.shape[:2], "B, K")
    if valid.dtype != torch.bool:
        raise ValueError(f"valid must be bool, got {valid.dtype}")
    return valid


def keep_valid(x: Tensor, valid: Bool[Tensor, "B K"]) -> Tensor:
    """Return x [B, K, ...] with 0 at invalid candidates, whatever they held; no gradient there."""
    return torch.where(valid.reshape(valid.shape + (1,) * (x.ndim - 2)), x, 0.0)


def mean_over_candidates(
    per_level: Float[Tensor, "B K *levels"], valid: Bool[Tensor, "B K"]
) -> Float[Tensor, ""]:
    """Return the mean over valid candidates of the sum over levels, if any; 0 if none is valid.

    `per_level` must already be finite at invalid candidates (`keep_valid`).
    """
    return keep_valid(per_level, valid).sum() / valid.sum().clamp_min(1)


def candidate_zscore(
    terminal_reward: Float[Tensor, "B K"], eps: float, valid: Bool[Tensor, "B K"]
) -> Float[Tensor, "B K"]:
    """Return (R - mean_K) / (std_K + eps) within each request (GPR Eq. 8, last level).

    Population std (correction 0) over the valid candidates. Exactly 0 at invalid candidates, for
    equal rewards and for a single candidate.
    """
    count = valid.sum(-1, keepdim=True).clamp_min(1)
    reward = keep_valid(terminal_reward, valid)
    mean = reward.sum(-1, keepdim=True) / count
    centred = keep_valid(reward - mean, valid)
    std = (centred.square().sum(-1, keepdim=True) / count).sqrt()
    # The rounding of the mean is no signal: compare the rewards themselves.
    high = torch.where(valid, reward, -math.inf).amax(-1, keepdim=True)
    low = torch.where(valid, reward, math.inf).amin(-1, keepdim=True)
    differs = high > low
    return torch.where(differs, centred / torch.where(differs, std + eps, 1.0), 0.0)


def candidate_centred(
    terminal_reward: Float[Tensor, "B K"], valid: Bool[Tensor, "B K"]
) -> Float[Tensor, "B K"]:
    """Return R - mean_K within each request: the z-score without its division.

    0 at invalid candidates; exactly 0 for equal rewards.
    """
    count = valid.sum(-1, keepdim=True).clamp_min(1)
    reward = keep_valid(terminal_reward, valid)
    high = torch.where(valid, reward, -math.inf).amax(-1, keepdim=True)
    low = torch.where(valid, reward, math.inf).amin(-1, keepdim=True)
    centred = reward - reward.sum(-1, keepdim=True) / count
    return torch.where(valid & (high > low), centred, 0.0)


def batch_zscore(
    terminal_reward: Float[Tensor, "B K"], eps: float, valid: Bool[Tensor, "B K"]
) -> Float[Tensor, "B K"]:
    """Return (R - mean) / (std + eps) over all valid candidates of the batch together."""
    flat = candidate_zscore(terminal_reward.reshape(1, -1), eps, valid.reshape(1, -1))
    return flat.reshape(terminal_reward.shape)


TERMINALS = ("zscore", "mean", "batch")


def terminal_advantage(
    kind: str, terminal_reward: Float[Tensor, "B K"], eps: float, valid: Bool[Tensor, "B K"]
) -> Float[Tensor, "B K"]:
    """Return the advantage that R gives: `zscore` (Eq. 8), `mean` or `batch`.

    Raises:
        ValueError: Another kind.
    """
    if kind == "zscore":
        return candidate_zscore(terminal_reward, eps, valid)
    if kind == "mean":
        return candidate_centred(terminal_reward, valid)
    if kind == "batch":
        return batch_zscore(terminal_reward, eps, valid)
    raise ValueError(f"terminal must be one of {TERMINALS}, got {kind!r}")


def clipped_surrogate(
    log_prob: Float[Tensor, "B K L"],
    behavior_log_prob: Float[Tensor, "B K L"],
    advantage: Float[Tensor, "B K L"],
    clip: float,
    level_weight: Float[Tensor, " L"] | None = None,
    valid: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, ""]:
    """Return the loss -mean_candidates sum_l c_l min(rho_l A_l, clip(rho_l, 1-e, 1+e) A_l) (Eq. 9).

    The ratio rho_l = pi(z_l) / pi_behavior(z_l) is formed per level in log space. The bound is
    applied there too: min(rho A, clip(rho) A) is A min(rho, 1 + e) for A >= 0 and A max(rho, 1 - e)
    otherwise, so a ratio beyond the bound never overflows, nor does its gradient.

    Differs from the paper: Eq. 9 is printed without the sign; it is an objective to maximise.

    Args:
        log_prob: log pi(z_l) of the chosen codes, nats; carries the gradient.
        behavior_log_prob: The same under the distribution that drew them (mask and temperature
            included). A constant.
        advantage: A_l, unit-free. A constant.
        clip: e, in (0, 1).
        level_weight: c_l, 1 by default.
        valid: Candidates that count, all by default.

    Returns:
        The scalar to minimise; 0 with a graph if no candidate is valid.

    Raises:
        ValueError: A wrong shape, or clip outside (0, 1).
    """
    check_clip(clip)
    log_ratio, advantage, valid = log_ratio_and_advantage(
        log_prob, behavior_log_prob, advantage, valid
    )
    bounded = torch.where(
        advantage >= 0,
        log_ratio.clamp(max=math.log1p(clip)),
        log_ratio.clamp(min=math.log1p(-clip)),
    )
    gain = bounded.exp() * advantage
    if level_weight is not None:
        check_shape("level_weight", level_weight, log_prob.shape[-1:], "L")
        gain = gain * level_weight
    return -mean_over_candidates(gain, valid)


def log_ratio_and_advantage(
    log_prob: Tensor, behavior_log_prob: Tensor, advantage: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Check the arguments of a surrogate; return log rho [B, K, L], advantage [B, K, L], valid.

    Both are 0 at invalid candidates; advantage and behaviour are detached.
    """
    if log_prob.ndim != 3:
        raise ValueError(f"log_prob must have shape [B, K, L], got {tuple(log_prob.shape)}")
    check_shape("behavior_log_prob", behavior_log_prob, log_prob.shape, "B, K, L")
    check_shape("advantage", advantage, log_prob.shape, "B, K, L")
    mask = resolve_valid(valid, log_prob)
    log_ratio = keep_valid(log_prob, mask) - keep_valid(behavior_log_prob.detach(), mask)
    return log_ratio, keep_valid(advantage.detach(), mask), mask


def whole_paths(
    log_prob: Tensor, behavior_log_prob: Tensor, advantage: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the arguments of a surrogate with one level per candidate: [B, K, 1] each.

    Log-probabilities are summed over the levels, advantages averaged.
    """
    check_shape("behavior_log_prob", behavior_log_prob, log_prob.shape, "B, K, L")
    check_shape("advantage", advantage, log_prob.shape, "B, K, L")
    mask = resolve_valid(valid, log_prob)
    return (
        keep_valid(log_prob, mask).sum(-1, keepdim=True),
        keep_valid(behavior_log_prob, mask).sum(-1, keepdim=True),
        keep_valid(advantage, mask).mean(-1, keepdim=True),
    )
