"""GR4AD's unified stage: value-aware imitation and RSPO in one step, weighed per candidate.

A candidate that the policy ranks as its value does is worth a preference; one that it misranks is
first to be imitated (or not) in proportion to its value.

Dims: B requests, K candidates, L levels.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.distributions import Distribution

from agents.actor_critic import make_policy_head
from agents.candidates import (
    check_above,
    check_shape,
    keep_valid,
    mean_over_candidates,
    resolve_valid,
)
from agents.modules.rollout_loss import Actor, path_log_prob, reference_path_log_prob
from agents.objectives.rspo import RSPOConfig, RSPOLoss, rspo_losses
from agents.registry import Method, register_method, tuning_space

_MAX_VALUE = 1e3


@dataclass(frozen=True, kw_only=True)
class UnifiedConfig(RSPOConfig):
    """The dial of vsl_rspo beside rspo's."""

    unified_weight: float = 0.1
    """w_0 of GR4AD's unified stage. Not given in the source."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above("unified_weight", self.unified_weight)


def rank_disagreement(
    log_prob: Float[Tensor, "B K"],
    value: Float[Tensor, "B K"],
    valid: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, "B K"]:
    """Return A_i = |rank_p(i) - rank_v(i)| / (n - 1) in [0, 1] over a request's valid candidates.

    Ties share the mean of their ranks. 0 for a single candidate and where not valid.
    """
    mask = resolve_valid(valid, log_prob)
    pair = mask[:, :, None] & mask[:, None, :]

    def rank(score: Tensor) -> Tensor:
        sign = (score[:, None, :] - score[:, :, None]).sign()  # candidates above less those below
        return torch.where(pair, sign, 0.0).sum(-1) / 2

    difference = (rank(keep_valid(log_prob, mask)) - rank(keep_valid(value, mask))).abs()
    count = mask.sum(-1, keepdim=True)
    return keep_valid(difference / (count - 1).clamp_min(1), mask)


def unified_weights(
    log_prob: Float[Tensor, "B K"],
    value: Float[Tensor, "B K"],
    weight: float,
    valid: Bool[Tensor, "B K"] | None = None,
) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K"]]:
    """Return w_VSL = w_0 exp(A_i log(1 + v_i)) and w_RL = w_0 Z_max (1 - A_i), constants.

    Decisions where the source is silent: v_i is the reward less the request's smallest one (at
    least 0), in units of the reward scale, at most 1000; Z_max is the largest w_VSL / w_0 among the
    request's candidates, so that both losses count in one scale. `weight` is w_0, above 0; `value`
    is R / reward scale; candidates that are not valid get 0.

    Raises:
        ValueError: A wrong shape, or weight that is not above 0.
    """
    check_shape("log_prob", log_prob, "B, K")
    check_shape("value", value, "B, K", log_prob.shape)
    check_above("weight", weight)
    mask = resolve_valid(valid, log_prob)
    apart = rank_disagreement(log_prob.detach(), value.detach(), mask)
    low = torch.where(mask, value.detach(), torch.inf).amin(-1, keepdim=True)
    above = keep_valid(value.detach() - torch.where(low.isfinite(), low, 0.0), mask)
    size = (apart * above.clamp(0.0, _MAX_VALUE).log1p()).exp()
    largest = keep_valid(size, mask).amax(-1, keepdim=True)
    return keep_valid(weight * size, mask), keep_valid(weight * largest * (1.0 - apart), mask)


def unified_loss(
    log_prob: Float[Tensor, "B K"],
    ref_log_prob: Float[Tensor, "B K"] | None,
    reward: Float[Tensor, "B K"],
    beta: float,
    delta: float,
    weight: float,
    valid: Bool[Tensor, "B K"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the weighted RSPO loss and the weighted imitation loss, both to be minimised.

    Both are means over valid candidates. What is imitated is above the request's mean reward: a
    supervised loss on all of the policy's own draws would only sharpen it. `reward` is in units of
    the reward scale, `weight` is w_0; the other arguments and the errors are those of `rspo_loss`.
    """
    mask = resolve_valid(valid, log_prob)
    supervised, preferred = unified_weights(log_prob, reward, weight, mask)
    losses = rspo_losses(log_prob, ref_log_prob, reward, beta, delta, mask)
    known = keep_valid(reward.detach(), mask)
    mean = known.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp_min(1)
    imitated = mask & (known > mean)
    nll = torch.where(imitated, -log_prob, 0.0)
    imitation = mean_over_candidates(supervised * nll, mask)
    return mean_over_candidates(preferred * losses, mask), imitation


class UnifiedLoss(RSPOLoss):
    """The unified loss over a rollout's candidates; `loss_objective` is RSPO's part."""

    writes = ("loss_objective", "loss_supervised", "entropy")

    def __init__(
        self, actor_network: Actor, *, beta: float = 0.3, delta: float = 1.0, weight: float = 0.1
    ) -> None:
        super().__init__(actor_network, beta=beta, delta=delta)
        self.weight = weight

    def losses(self, data: TensorDictBase, distribution: Distribution) -> TensorDict:
        """Return the loss, see the class."""
        preferred, supervised = unified_loss(
            path_log_prob(data, distribution),
            reference_path_log_prob(data),
            data["terminal_reward"],
            self.beta,
            self.delta,
            self.weight,
            data["valid"],
        )
        return TensorDict({"loss_objective": preferred, "loss_supervised": supervised})


_SPACE = tuning_space(has_entropy=False, rspo_beta=(0.1, 0.3, 1.0), unified_weight=(0.03, 0.1, 0.3))


@register_method("vsl_rspo", config=UnifiedConfig, search_space=_SPACE)
def vsl_rspo(config: UnifiedConfig, num_levels: int) -> Method:
    """GR4AD's unified stage: value-aware imitation and RSPO in one step."""
    loss = UnifiedLoss(
        make_policy_head(),
        beta=config.rspo_beta,
        delta=config.rspo_delta,
        weight=config.unified_weight,
    )
    return Method(None, loss, uses_reference=True)
