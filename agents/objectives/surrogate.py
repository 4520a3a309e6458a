"""The loss of every method that weighs log-probabilities by advantages (GPR Eq. 9).

Dims: B requests, K candidates, L levels (coarse to fine), V codes per level.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torch.distributions import Distribution

from agents.actor_critic import make_policy_head
from agents.candidates import (
    REDUCTIONS,
    check_choice,
    check_clip,
    check_range,
    check_shape,
    keep_valid,
    mean_over_candidates,
    over_candidates,
    resolve_valid,
)
from agents.critic import value_loss
from agents.modules.keys import key_of, read_keys
from agents.modules.rollout_loss import Actor, RolloutLoss
from agents.shared_config import SharedConfig

Surrogate = Callable[..., Tensor]
"""(log_prob, behavior_log_prob, advantage, valid=...) -> a scalar; `reduction=` if not the mean."""


@dataclass(frozen=True, kw_only=True)
class SurrogateConfig(SharedConfig):
    """The dials of every method with a surrogate: all but raft, dpo, sdpo and rspo."""

    clip: float = 0.2
    """epsilon of Eq. 9. Not given in the paper."""
    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus per level and nat (not dpo, rspo). Not in the paper."""

    level_weight: tuple[float, ...] = ()
    """c_l of Eq. 9, L of them; (): 1 at every level."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_clip(self.clip)
        check_range("entropy_coefficient", self.entropy_coefficient, 0)


def clipped_surrogate(
    log_prob: Float[Tensor, "B K L"],
    behavior_log_prob: Float[Tensor, "B K L"],
    advantage: Float[Tensor, "B K L"],
    clip: float,
    level_weight: Float[Tensor, " L"] | None = None,
    valid: Bool[Tensor, "B K"] | None = None,
    reduction: str = "mean",
) -> Float[Tensor, "..."]:
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
        reduction: `mean`, `sum` or `none`; see `agents.candidates.over_candidates`.

    Returns:
        The scalar to minimise; 0 with a graph if no candidate is valid.

    Raises:
        ValueError: A wrong shape, clip outside (0, 1), or another reduction.
    """
    check_clip(clip)
    log_prob, behavior, advantage, mask = surrogate_inputs(
        log_prob, behavior_log_prob, advantage, valid
    )
    log_ratio = log_prob - behavior
    bounded = torch.where(
        advantage >= 0,
        log_ratio.clamp(max=math.log1p(clip)),
        log_ratio.clamp(min=math.log1p(-clip)),
    )
    gain = bounded.exp() * advantage
    if level_weight is not None:
        check_shape("level_weight", level_weight, "L", log_prob.shape[-1:])
        gain = gain * level_weight
    return -over_candidates(gain, mask, reduction)


def surrogate_inputs(
    log_prob: Tensor,
    behavior_log_prob: Tensor,
    advantage: Tensor,
    valid: Tensor | None,
    sequence_level: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the checked arguments of a surrogate, 0 where not valid, the constants detached.

    With `sequence_level` a whole candidate is one level: [B, K, 1], log-probabilities summed and
    advantages averaged.
    """
    check_shape("log_prob", log_prob, "B, K, L")
    check_shape("behavior_log_prob", behavior_log_prob, "B, K, L", log_prob.shape)
    check_shape("advantage", advantage, "B, K, L", log_prob.shape)
    mask = resolve_valid(valid, log_prob)
    log_prob = keep_valid(log_prob, mask)
    behavior = keep_valid(behavior_log_prob.detach(), mask)
    advantage = keep_valid(advantage.detach(), mask)
    if sequence_level:
        log_prob, behavior = log_prob.sum(-1, keepdim=True), behavior.sum(-1, keepdim=True)
        advantage = advantage.mean(-1, keepdim=True)
    return log_prob, behavior, advantage, mask


class SurrogateLoss(RolloutLoss):
    """Eq. 9 for the actor and Eq. 10 for the critic, as a torchrl loss.

    Serves every method of this form: HEPO, GRPO; ECPO, GBPO and REINFORCE with their own surrogate.
    The two losses never meet: the critic reads the rollout's detached state, so it can't move the
    HSD, and the advantage is a constant, so the policy can't move the critic.

    Reads `value_target` too with a critic (shapes: see `agents.rollout`), and writes `loss_entropy`
    and `loss_critic` where they apply. Keys are those of torchrl's ClipPPOLoss, and `valid`.
    """

    reads = ("codes", "action_log_prob", "advantage", "valid", "value_target", "state_value")
    writes = ("loss_objective", "entropy", "clip_fraction")
    critic_network: TensorDictModuleBase | None

    def __init__(
        self,
        actor_network: Actor,
        critic_network: TensorDictModuleBase | None = None,
        *,
        clip: float = 0.2,
        critic_coeff: float = 1.0,
        entropy_coefficient: float = 0.0,
        level_weight: Sequence[float] | None = None,
        reduction: str = "mean",
        surrogate: Surrogate | None = None,
    ) -> None:
        """Store the networks (shared, not copied) and the constants of `clipped_surrogate`.

        `critic_network` writes `state_value` [B, K, L, 1]; `critic_coeff` multiplies its loss, and
        `entropy_coefficient` weighs the entropy bonus, per level and nat. `surrogate` is another
        function in place of Eq. 9, for instance `gbpo_surrogate`: then `clip` only counts the
        `clip_fraction`, and no level has a weight. `reduction` is `mean` (over valid candidates, of
        sums over levels), `sum` or `none` (losses [B, K]).
        """
        super().__init__(actor_network)
        check_clip(clip)
        check_range("critic_coeff", critic_coeff, 0.0)
        check_range("entropy_coefficient", entropy_coefficient, 0.0)
        check_choice("reduction", reduction, REDUCTIONS)
        self.critic_network = critic_network
        self.critic_coeff = critic_coeff
        self.reduction = reduction
        self.clip = clip
        self.entropy_coefficient = entropy_coefficient
        self.surrogate = surrogate or self._clipped
        self.level_weight = level_weight

    def read_now(self) -> tuple[str, ...]:
        """Return what is read: a value target only with a critic, which writes the values."""
        return self.reads[:-1] if self.critic_network is not None else self.reads[:-2]

    def network_keys(self) -> list[Any]:
        """Return what the actor reads, and the critic beside what the actor writes."""
        actor, critic = self.actor_network, self.critic_network
        of_critic = [] if critic is None else critic.in_keys
        return [*actor.in_keys, *(key for key in of_critic if key not in actor.out_keys)]

    @classmethod
    def of(cls, config: SurrogateConfig, surrogate: Surrogate | None = None) -> "SurrogateLoss":
        """Return the loss of a method without a critic in it, for `logits` that are at hand."""
        if surrogate is not None and config.level_weight:
            raise ValueError(
                f"level_weight must be () for a surrogate of its own, got {config.level_weight}"
            )
        return cls(
            make_policy_head(),
            clip=config.clip,
            entropy_coefficient=config.entropy_coefficient,
            level_weight=config.level_weight or None,
            surrogate=surrogate,
        )

    def losses(self, data: TensorDictBase, distribution: Distribution) -> TensorDict:
        """Return the losses and `clip_fraction`, see the class."""
        valid, behavior = data["valid"], data["action_log_prob"]
        log_prob = distribution.log_prob(data["codes"])
        out = TensorDict()
        reduced = {} if self.reduction == "mean" else {"reduction": self.reduction}
        out["loss_objective"] = self.surrogate(
            log_prob, behavior, data["advantage"].squeeze(-1), valid=valid, **reduced
        )
        if self.entropy_coefficient:
            entropy = over_candidates(distribution.entropy(), valid, self.reduction)
            out["loss_entropy"] = -self.entropy_coefficient * entropy
        if self.critic_network is not None:
            out["loss_critic"] = self._critic(data)
        with torch.no_grad():
            ratio = keep_valid(log_prob - behavior, valid).exp()
            clipped = ((ratio - 1).abs() > self.clip).to(ratio.dtype)
            out["clip_fraction"] = mean_over_candidates(clipped, valid) / ratio.shape[-1]
        return out

    def _clipped(
        self,
        log_prob: Tensor,
        behavior: Tensor,
        advantage: Tensor,
        *,
        valid: Tensor,
        reduction: str = "mean",
    ) -> Tensor:
        weight = None if self.level_weight is None else log_prob.new_tensor(self.level_weight)
        return clipped_surrogate(log_prob, behavior, advantage, self.clip, weight, valid, reduction)

    def loss_critic(self, tensordict: TensorDictBase) -> Tensor:
        """Return Eq. 10 alone, times `critic_coeff`, for critic updates between policy updates.

        Raises:
            ValueError: The loss has no critic.
        """
        return self._critic(read_keys(self.tensor_keys, self.reads, tensordict))

    def _critic(self, data: TensorDictBase) -> Tensor:
        if self.critic_network is None:
            raise ValueError("loss_critic needs a critic_network, got None")
        value = self.critic_network(data.detach())[key_of(self.tensor_keys, "state_value")]
        target = data["value_target"].squeeze(-1)
        loss = value_loss(value.squeeze(-1), target, data["valid"], self.reduction)
        return loss if self.critic_coeff == 1.0 else self.critic_coeff * loss
