"""Value-aware supervised learning (GR4AD): paths and eCPM tokens, weighed by user and behaviour.

Dims: B windows, P supervised positions per window, N heads, L levels, V codes, Q eCPM buckets.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gpr_rl.checks import check_finite
from gpr_rl.pretraining.mtp import mtp_loss, path_log_prob
from gpr_rl.schema import Action, Targets


@dataclass(frozen=True, kw_only=True)
class VSLConfig:
    """Weights of the objective; none is given in the source."""

    click_weight: float = 3.0
    """Of a click, before normalisation; an impression has 1."""
    conversion_weight: float = 9.0
    """Of a conversion."""
    max_user_weight: float = 3.0
    """Users count in proportion to the mean eCPM of their targets, at most this often and at least
    its reciprocal."""
    ecpm_weight: float = 0.3
    """lambda_e, of the eCPM token."""
    mtp_weight: float = 0.3
    """lambda, of the plain multi-token prediction of all heads."""

    def __post_init__(self) -> None:
        if not 1.0 < self.click_weight < self.conversion_weight:
            raise ValueError(
                "weights must rise from impression (1) over click to conversion, got "
                f"{self.click_weight} and {self.conversion_weight}"
            )
        check_finite(1, max_user_weight=self.max_user_weight)
        check_finite(0, ecpm_weight=self.ecpm_weight, mtp_weight=self.mtp_weight)


def vsl_weight(targets: Targets, config: VSLConfig) -> Float[Tensor, "B P"]:
    """Return w_user w_behaviour of head 1's targets, mean 1 over the valid ones; no gradient.

    Decision where the source is silent: a user is worth the mean eCPM of its supervised ads over
    that of the batch.
    """
    valid, action = targets.valid[..., 0], targets.action[..., 0]
    behaviour = torch.ones_like(targets.ecpm[..., 0])
    behaviour = behaviour.masked_fill(action == Action.CLICK, config.click_weight)
    behaviour = behaviour.masked_fill(action == Action.CONVERSION, config.conversion_weight)
    ecpm = targets.ecpm[..., 0].detach().where(valid, 0.0)
    count = valid.sum(-1).clamp_min(1)
    worth = ecpm.sum(-1) / count
    mean = ecpm.sum() / valid.sum().clamp_min(1)
    user = (worth / mean.clamp_min(torch.finfo(worth.dtype).tiny)).clamp(
        1.0 / config.max_user_weight, config.max_user_weight
    )
    weight = (user[:, None] * behaviour).where(valid, 0.0)
    return weight * valid.sum() / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)


def vsl_loss(
    logits: Float[Tensor, "B P N L V"],
    ecpm_logits: Float[Tensor, "B P Q"],
    ecpm_bucket: Int[Tensor, "B P"],
    targets: Targets,
    head_logits: Float[Tensor, " N"],
    config: VSLConfig,
    entropy_weight: float = 0.1,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Return w_user w_behaviour (L_SID + lambda_e L_eCPM) + lambda L_MTP, and its parts.

    L_SID is head 1's negative log-likelihood of the next ad's path, L_eCPM the cross-entropy of its
    eCPM bucket in [0, Q), both means over valid positions; L_MTP is GPR Eq. 3 over all heads.
    Logits are those of `HHD.window_logits` and, along head 1's targets, `HHD.ecpm_logits`.

    Raises:
        ValueError: No target is valid.
    """
    valid = targets.valid[..., 0]
    weight = vsl_weight(targets, config)
    count = valid.sum().clamp_min(1)
    path = -path_log_prob(logits, targets)[..., 0]
    ecpm = F.cross_entropy(ecpm_logits.flatten(0, 1), ecpm_bucket.flatten(), reduction="none")
    ecpm = ecpm.view(valid.shape).where(valid, 0.0)
    parts = {
        "sid": (weight * path).sum() / count,
        "ecpm": (weight * ecpm).sum() / count,
        "mtp": mtp_loss(logits, targets, head_logits, entropy_weight),
    }
    total = parts["sid"] + config.ecpm_weight * parts["ecpm"] + config.mtp_weight * parts["mtp"]
    return total, parts
