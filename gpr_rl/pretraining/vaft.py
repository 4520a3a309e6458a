"""Value-aware fine-tuning: weights by action and eCPM, and the critic's first lessons (GPR 3.2).

Dims: B windows, P supervised positions per window, N heads, L levels, V codes.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from gpr_rl.models.hte import HTEOutput
from gpr_rl.pretraining.mtp import mtp_loss
from gpr_rl.schema import Action, Targets

_LEAST_PROBABILITY = 1e-6  # floor of a denominator; rankers' outputs lie far above it


def vaft_weight(targets: Targets, max_weight: float = 5.0) -> Float[Tensor, "B P N"]:
    """Return w^V of GPR Eq. 4: what a target is worth by its action and eCPM.

    Impression: eCPM; click: eCPM / pCTR; conversion: eCPM / (pCTR pCVR), with the rankers'
    probabilities. Then divided by the mean over the batch's valid targets, log1p, clipped to
    [0, max_weight] (not given in the paper), in this order. 0 where not valid. No gradient.
    """
    clicked = targets.action >= Action.CLICK
    converted = targets.action == Action.CONVERSION
    probability = targets.pctr.where(clicked, 1.0) * targets.pcvr.where(converted, 1.0)
    raw = targets.ecpm / probability.clamp_min(_LEAST_PROBABILITY)
    raw = raw.detach().where(targets.valid, 0.0)
    mean = raw.sum() / targets.valid.sum().clamp_min(1)
    return torch.log1p(raw / mean.clamp_min(torch.finfo(raw.dtype).tiny)).clamp_max(max_weight)


def weight_by_action(
    weight: Float[Tensor, "B P N"], targets: Targets
) -> dict[str, Float[Tensor, ""]]:
    """Return the mean weight of valid impressions, clicks and conversions, NaN where none.

    Worth logging: the order conversion > click > impression is the point of Eq. 4.
    """
    actions = (Action.IMPRESSION, Action.CLICK, Action.CONVERSION)
    return {
        action.name.lower(): weight[targets.valid & (targets.action == action)].mean()
        for action in actions
    }


def exponential_weight(targets: Targets, scale: float) -> Float[Tensor, "B P N"]:
    """Return exp(final value / scale) with mean 1 over the batch's valid targets; no gradient.

    Exponentially reward-weighted likelihood (arXiv 2603.10279) on logged paths. `scale` is in the
    value's unit. 0 where not valid.
    """
    logit = (targets.final_value.detach() / scale).where(targets.valid, -torch.inf)
    share = logit.flatten().softmax(0).view(logit.shape)
    return share * targets.valid.sum()


def vaft_loss(
    logits: Float[Tensor, "B P N L V"],
    targets: Targets,
    head_logits: Float[Tensor, " N"],
    entropy_weight: float = 0.1,
    max_weight: float = 5.0,
) -> Float[Tensor, ""]:
    """Return the loss of GPR Eq. 4: Eq. 3 with every target weighted by `vaft_weight`."""
    weight = vaft_weight(targets, max_weight)
    return mtp_loss(logits, targets, head_logits, entropy_weight, weight)


def hte_loss(
    output: HTEOutput,
    reward_scaled: Float[Tensor, "*batch"],
    pctr: Float[Tensor, "*batch"],
    pcvr: Float[Tensor, "*batch"],
    valid: Bool[Tensor, "*batch"],
) -> Float[Tensor, ""]:
    """Return the HTE's regression and classification loss, mean over valid paths.

    Squared error of every prefix value and of `final_value` to the path's reward / `reward_scale`,
    the mean over these L + 1, plus the cross-entropies of the click and the conversion head. `pctr`
    is the rankers' click probability, or 0 and 1; `pcvr` is that of a conversion after a click.
    Paths that are not valid may hold anything.
    """
    scaled = reward_scaled.where(valid, 0.0)
    values = torch.cat([output.value, output.final_value[..., None]], dim=-1)
    loss = (values - scaled[..., None]).square().mean(-1)
    for logit, target in ((output.pctr_logit, pctr), (output.pcvr_logit, pcvr)):
        loss = loss + F.binary_cross_entropy_with_logits(
            logit, target.where(valid, 0.0), reduction="none"
        )
    return loss.where(valid, 0.0).sum() / valid.sum().clamp_min(1)


def explained_variance(
    prediction: Float[Tensor, "*batch L"],
    target: Float[Tensor, "*batch"],
    valid: Bool[Tensor, "*batch"],
) -> Float[Tensor, " L"]:
    """Return 1 - Var(target - prediction) / Var(target) per level, over valid paths.

    1 is perfect, 0 as good as a constant, below 0 worse; NaN where the target doesn't vary.
    """
    actual, predicted = target[valid], prediction[valid]
    error = actual[:, None] - predicted
    spread = actual.var(correction=0)
    return 1 - error.var(0, correction=0) / spread.where(spread > 0, torch.nan)
