"""GBPO: gradient-bounded policy optimisation, no clip (OneRec).

Dims: B requests, K candidates, L levels.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agents.candidates import over_candidates
from agents.objectives.grpo import GRPOAdvantage, GRPOConfig
from agents.objectives.surrogate import SurrogateLoss, surrogate_inputs
from agents.registry import PLAIN_SPACE, Method, register_method


def gbpo_surrogate(
    log_prob: Float[Tensor, "B K L"],
    behavior_log_prob: Float[Tensor, "B K L"],
    advantage: Float[Tensor, "B K L"],
    valid: Bool[Tensor, "B K"] | None = None,
    *,
    sequence_level: bool = False,
    reduction: str = "mean",
) -> Float[Tensor, "..."]:
    """Return -mean_candidates sum_l (pi / pi_old') A with a denominator that bounds the gradient.

    pi_old' = max(pi_old, sg(pi)) where A >= 0 and max(pi_old, 1 - sg(pi)) otherwise. The gradient
    by a logit is then at most that of the binary cross-entropy: a bad code that is unlikely already
    is not pushed down without end, a good one not up.

    Differs from the paper (OneRec): one ratio per level, not per item. With `sequence_level` there
    is one for the whole path, and the mean advantage of its levels. Other arguments and errors are
    those of `clipped_surrogate`.
    """
    log_prob, behavior, advantage, mask = surrogate_inputs(
        log_prob, behavior_log_prob, advantage, valid, sequence_level
    )
    current = log_prob.detach()
    floor = torch.where(advantage >= 0, current, log1mexp(current))
    ratio = (log_prob - torch.maximum(behavior, floor)).exp()
    return -over_candidates(ratio * advantage, mask, reduction)


def log1mexp(log_p: Tensor) -> Tensor:
    """Return log(1 - exp(log_p)) for log_p <= 0, accurate at both ends; -inf for probability 1."""
    log_p = log_p.clamp_max(0.0)  # a log-softmax may round to slightly above 0
    return torch.where(
        log_p > -math.log(2.0), (-torch.expm1(log_p)).log(), torch.log1p(-log_p.exp())
    )


@register_method("gbpo", config=GRPOConfig, search_space=PLAIN_SPACE)
def gbpo(config: GRPOConfig, num_levels: int) -> Method:
    """OneRec's gradient-bounded ratio, without a clip, on GRPO's advantages."""
    advantage = GRPOAdvantage(terminal=config.terminal)
    return Method(advantage, SurrogateLoss.of(config, gbpo_surrogate))
