"""The critic's dials and its loss (GPR Eq. 10).

Dims: B requests, K candidates, L levels.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from tensordict import TensorDict
from torch import Tensor

from agents.actor_critic import ActorCriticModel
from agents.candidates import (
    check_above,
    check_range,
    check_shape,
    keep_valid,
    over_candidates,
    resolve_valid,
)
from agents.shared_config import SharedConfig


@dataclass(frozen=True, kw_only=True)
class CriticConfig(SharedConfig):
    """The dials of methods with a critic: hepo, hepo_terminal and ppo."""

    discount: float = 1.0
    """gamma of Eq. 8. Not given in the paper; an episode is only L steps long."""
    gae_lambda: float = 0.95
    """lambda of Eq. 8. Not given in the paper."""
    critic_learning_rate: float = 1e-3
    """Adam's, for the HTE. Not given in the paper."""
    critic_updates: int = 4
    """Critic updates per step. Not given in the paper."""
    critic_requests: int = 16
    """Requests per critic update, with all their candidates; the updates walk through the batch. A
    batch of fewer (`num_requests`) is taken whole, and methods without a critic read nothing of
    it. Not given in the paper."""
    critic_warmup_steps: int = 15
    """First steps that train the critic only, for methods with a critic; they count in
    num_steps. Departs from the paper, which trains the HTE before RL and is silent on this."""
    critic_replay: int = 0
    """Earlier steps whose requests the critic's updates draw from as well. Not in the paper."""
    critic_moves_trunk: bool = False
    """Let the value loss move the HSD too; the paper stops that gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("discount", "gae_lambda"):
            check_range(name, getattr(self, name), 0.0, 1.0)
        for name in ("critic_updates", "critic_requests"):
            check_range(name, getattr(self, name), 1)
        for name in ("critic_warmup_steps", "critic_replay"):
            check_range(name, getattr(self, name), 0)
        check_above("critic_learning_rate", self.critic_learning_rate)


def value_loss(
    value: Float[Tensor, "B K L"],
    value_target: Float[Tensor, "B K L"],
    valid: Bool[Tensor, "B K"] | None = None,
    reduction: str = "mean",
) -> Float[Tensor, "..."]:
    """Return the mean over valid candidates of sum_l (V(s, z_{1:l-1}) - G_l)^2 (Eq. 10).

    `reduction`: see `agents.candidates.over_candidates`.

    Raises:
        ValueError: A wrong shape, or another reduction.
    """
    check_shape("value", value, "B, K, L")
    check_shape("value_target", value_target, "B, K, L", value.shape)
    mask = resolve_valid(valid, value)
    error = keep_valid(value, mask) - keep_valid(value_target.detach(), mask)
    return over_candidates(error.square(), mask, reduction)


def attached_value_loss(model: ActorCriticModel, batch: TensorDict) -> Tensor:
    """Return Eq. 10's loss with the gradient let through to the HSD (an ablation)."""
    hte = model.hte
    if not hasattr(hte, "stop_gradient"):
        raise ValueError("critic_moves_trunk needs a critic with `stop_gradient`, as the HTE's")
    hte.stop_gradient = False
    try:
        value = hte(batch["context"], batch["codes"]).value
    finally:
        hte.stop_gradient = True
    return value_loss(value, batch["value_target"].squeeze(-1), batch["valid"])
