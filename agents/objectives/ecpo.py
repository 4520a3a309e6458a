"""ECPO: GRPO with an early clip of the policy gradient for bad candidates (OneRec).

Dims: B requests, K candidates, L levels.
"""

import math
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agents.candidates import check_clip, check_range
from agents.objectives.grpo import GRPOAdvantage, GRPOConfig
from agents.objectives.surrogate import SurrogateLoss, clipped_surrogate, surrogate_inputs
from agents.registry import Method, register_method


def ecpo_surrogate(
    log_prob: Float[Tensor, "B K L"],
    behavior_log_prob: Float[Tensor, "B K L"],
    advantage: Float[Tensor, "B K L"],
    clip: float,
    delta: float = 0.1,
    valid: Bool[Tensor, "B K"] | None = None,
    *,
    sequence_level: bool = False,
    reduction: str = "mean",
) -> Float[Tensor, "..."]:
    """Return the clipped surrogate with pi_old raised to sg(pi) / (1 + clip + delta) where A < 0.

    PPO's bound leaves the ratio of a bad candidate free upwards; a candidate that the behaviour
    found unlikely can then dominate the gradient. Here such a ratio stops at 1 + clip + delta,
    with the gradient of log pi times that number.

    Differs from the paper (OneRec): one ratio per level, not per item. With `sequence_level` there
    is one for the whole path, and the mean advantage of its levels. `delta`, at least 0, is the
    room above the bound; other arguments and errors are those of `clipped_surrogate`.
    """
    check_clip(clip)
    check_range("delta", delta, 0.0)
    log_prob, behavior, advantage, mask = surrogate_inputs(
        log_prob, behavior_log_prob, advantage, valid, sequence_level
    )
    log_ratio = log_prob - behavior
    # Raising log pi_old by max(0, excess) bounds the ratio's value, not its gradient.
    excess = (log_ratio.detach() - math.log1p(clip + delta)).clamp_min(0.0)
    raised = torch.where(advantage < 0, excess, 0.0)
    return clipped_surrogate(log_ratio, raised, advantage, clip, valid=mask, reduction=reduction)


@register_method("ecpo", config=GRPOConfig)
def ecpo(config: GRPOConfig, num_levels: int) -> Method:
    """OneRec's GRPO with early clipping of bad candidates."""
    surrogate = partial(ecpo_surrogate, clip=config.clip)
    return Method(GRPOAdvantage(terminal=config.terminal), SurrogateLoss.of(config, surrogate))
