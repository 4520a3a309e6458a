"""The loss of every method that weighs log-probabilities by advantages, and the critic's beside it.

Dims: B requests, K candidates, L levels (coarse to fine), V codes per level.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torch.distributions import Distribution

from agents.objectives.loss_shell import Actor, RolloutLoss
from agents.objectives.surrogate import (
    check_clip,
    check_range,
    check_shape,
    clipped_surrogate,
    keep_valid,
    mean_over_candidates,
    resolve_valid,
)

Surrogate = Callable[..., Tensor]
"""(log_prob, behavior_log_prob, advantage, valid=...) -> scalar loss."""


def value_loss(
    value: Float[Tensor, "B K L"],
    value_target: Float[Tensor, "B K L"],
    valid: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean over valid candidates of sum_l (V(s, z_{1:l-1}) - G_l)^2 (Eq. 10).

    Raises:
        ValueError: A wrong shape.
    """
    if value.ndim != 3:
        raise ValueError(f"value must have shape [B, K, L], got {tuple(value.shape)}")
    check_shape("value_target", value_target, value.shape, "B, K, L")
    mask = resolve_valid(valid, value)
    error = keep_valid(value, mask) - keep_valid(value_target.detach(), mask)
    return mean_over_candidates(error.square(), mask)


class SurrogateLoss(RolloutLoss):
    """Eq. 9 for the actor and Eq. 10 for the critic, as a torchrl loss.

    Serves every method of this form: HEPO, GRPO; ECPO, GBPO and REINFORCE with their own surrogate.
    The two losses never meet: the critic reads the rollout's detached state, so it can't move the
    HSD, and the advantage is a constant, so the policy can't move the critic.

    Reads what the networks read, and `codes`, `action_log_prob` [B, K, L], `advantage`
    [B, K, L, 1], `valid` [B, K]; with a critic `value_target` [B, K, L, 1]. Writes
    `loss_objective`, `loss_entropy` and `loss_critic` (where they apply), `entropy` (nats, summed
    over levels) and `clip_fraction`.
    """

    critic_network: TensorDictModuleBase | None

    def __init__(
        self,
        actor_network: Actor,
        critic_network: TensorDictModuleBase | None = None,
        *,
        clip: float = 0.2,
        entropy_coefficient: float = 0.0,
        level_weight: Sequence[float] | None = None,
        surrogate: Surrogate | None = None,
    ) -> None:
        """Store the networks (shared, not copied) and the constants.

        Args:
            actor_network: Gives a masked categorical [B, K, L, V] through `get_dist`.
            critic_network: Writes `state_value` [B, K, L, 1].
            clip: epsilon of Eq. 9, in (0, 1).
            entropy_coefficient: Weight of the entropy bonus, per level and nat.
            level_weight: c_l of Eq. 9, L entries; 1 by default.
            surrogate: Another function in place of Eq. 9, for instance `gbpo_surrogate`; `clip`
                then only counts the `clip_fraction`, and there are no level weights.
        """
        super().__init__(
            actor_network,
            reads=["codes", "action_log_prob", "advantage", "valid"],
            writes=["loss_objective", "entropy", "clip_fraction"],
        )
        check_clip(clip)
        check_range("entropy_coefficient", entropy_coefficient, 0.0)
        self.critic_network = critic_network
        self.clip = clip
        self.entropy_coefficient = entropy_coefficient
        self.surrogate = surrogate or self._clipped
        self.level_weight = level_weight

    def losses(self, data: TensorDictBase, distribution: Distribution) -> TensorDict:
        """Return the losses and `clip_fraction`, see the class."""
        valid, behavior = data["valid"], data["action_log_prob"]
        log_prob = distribution.log_prob(data["codes"])
        out = TensorDict()
        out["loss_objective"] = self.surrogate(
            log_prob, behavior, data["advantage"].squeeze(-1), valid=valid
        )
        if self.entropy_coefficient:
            entropy = mean_over_candidates(distribution.entropy(), valid)
            out["loss_entropy"] = -self.entropy_coefficient * entropy
        if self.critic_network is not None:
            out["loss_critic"] = self.loss_critic(data)
        with torch.no_grad():
            ratio = keep_valid(log_prob - behavior, valid).exp()
            clipped = ((ratio - 1).abs() > self.clip).to(ratio.dtype)
            out["clip_fraction"] = mean_over_candidates(clipped, valid) / ratio.shape[-1]
        return out

    def _clipped(
        self, log_prob: Tensor, behavior: Tensor, advantage: Tensor, *, valid: Tensor
    ) -> Tensor:
        weight = None if self.level_weight is None else log_prob.new_tensor(self.level_weight)
        return clipped_surrogate(log_prob, behavior, advantage, self.clip, weight, valid)

    def loss_critic(self, tensordict: TensorDictBase) -> Tensor:
        """Return Eq. 10 alone, for critic updates between policy updates."""
        if self.critic_network is None:
            raise ValueError("loss_critic needs a critic_network, got None")
        value = self.critic_network(tensordict.detach())["state_value"].squeeze(-1)
        return value_loss(value, tensordict["value_target"].squeeze(-1), tensordict["valid"])
