"""ECPO: GRPO with an early clip of the policy gradient for bad candidates (OneRec).

Dims: B requests, K candidates, L levels.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agents.objectives.surrogate import (
    check_clip,
    check_range,
    clipped_surrogate,
    log_ratio_and_advantage,
    whole_paths,
)


def ecpo_surrogate(
    log_prob: Float[Tensor, "B K L"],
    behavior_log_prob: Float[Tensor, "B K L"],
    advantage: Float[Tensor, "B K L"],
    clip: float,
    delta: float = 0.1,
    valid: Bool[Tensor, "B K"] | None = None,
    *,
    sequence_level: bool = False,
) -> Float[Tensor, ""]:
    """Return the clipped surrogate with pi_old raised to sg(pi) / (1 + clip + delta) where A < 0.

    PPO's bound leaves the ratio of a bad candidate free upwards; a candidate that the behaviour
    found unlikely can then dominate the gradient. Here such a ratio stops at 1 + clip + delta,
    with the gradient of log pi times that number.

    Differs from the paper (OneRec): one ratio per level, not per item, unless `sequence_level`.

    Args:
        log_prob: log pi(z_l) of the chosen codes, nats; carries the gradient.
        behavior_log_prob: Under the distribution that drew them. A constant.
        advantage: A_l, unit-free. A constant.
        clip: epsilon, in (0, 1).
        delta: Room above the bound, at least 0.
        valid: Candidates that count, all by default.
        sequence_level: One ratio for the whole path and the mean advantage of its levels.

    Raises:
        ValueError: A wrong shape, clip outside (0, 1) or delta < 0.
    """
    check_clip(clip)
    check_range("delta", delta, 0.0)
    if sequence_level:
        log_prob, behavior_log_prob, advantage = whole_paths(
            log_prob, behavior_log_prob, advantage, valid
        )
    log_ratio, advantage, mask = log_ratio_and_advantage(
        log_prob, behavior_log_prob, advantage, valid
    )
    # Raising log pi_old by max(0, excess) bounds the ratio's value, not its gradient.
    excess = (log_ratio.detach() - math.log1p(clip + delta)).clamp_min(0.0)
    raised = torch.where(advantage < 0, excess, 0.0)
    return clipped_surrogate(log_ratio, raised, advantage, clip, valid=mask)
