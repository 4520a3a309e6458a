"""PPO as a baseline: torchrl's own GAE and ClipPPOLoss on the rollouts of the other methods.

Dims: B requests, K candidates, L levels. The L decisions of a candidate are the time steps, the
reward R comes with the last one, and nothing follows it.
"""

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from agents.actor_critic import make_policy_head
from agents.critic import CriticConfig
from agents.objectives.loss_shell import Actor
from agents.objectives.surrogate import SurrogateConfig
from agents.registry import Method, register_method, tuning_space


@dataclass(frozen=True, kw_only=True)
class PPOConfig(SurrogateConfig, CriticConfig):
    """The dials of ppo: none of its own."""


_GAE_KEYS = (
    "state_value",
    ("next", "state_value"),
    ("next", "reward"),
    ("next", "done"),
    ("next", "terminated"),
)


class LevelGAE(TensorDictModuleBase):
    """torchrl's GAE with the levels as time: writes `advantage` and `value_target` [B, K, L, 1].

    A rollout has batch [B], so that the HSD runs once per request; torchrl's GAE takes the last
    batch dimension for time, so it gets a view with batch [B, K, L].
    """

    def __init__(self, *, discount: float = 1.0, gae_lambda: float = 0.95) -> None:
        super().__init__()
        # Without a dtype torchrl rounds them to float32, also for float64 rollouts.
        gamma, lmbda = torch.tensor([discount, gae_lambda], dtype=torch.float64).unbind()
        self.gae = GAE(gamma=gamma, lmbda=lmbda, value_network=None)
        self.in_keys = list(_GAE_KEYS)
        self.out_keys = ["advantage", "value_target"]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the same TensorDict with the out-keys set."""
        steps = tensordict.select(*_GAE_KEYS)
        steps.batch_size = tensordict["state_value"].shape[:-1]
        steps = self.gae(steps)
        for key in self.out_keys:
            tensordict.set(key, steps[key])
        return tensordict


class LevelSummedPPOLoss(ClipPPOLoss):
    """torchrl's ClipPPOLoss times L: torchrl means over the levels where Eq. 9 sums.

    Candidates that are not `valid` leave the mean (`loss_mask_key`). The critic is trained outside,
    with the mean squared error and the schedule that HEPO's critic has.
    """

    def __init__(
        self,
        actor_network: Actor,
        *,
        num_levels: int,
        clip: float = 0.2,
        entropy_coefficient: float = 0.0,
    ) -> None:
        """Store the actor (shared, not copied), L, Eq. 9's epsilon and the entropy weight."""
        super().__init__(
            actor_network,
            None,
            clip_epsilon=clip,
            entropy_bonus=entropy_coefficient > 0,
            entropy_coeff=entropy_coefficient,
            functional=False,
        )
        self.num_levels = num_levels
        self.loss_mask_key = "valid"

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return torchrl's losses; `loss_objective` and `loss_entropy` times L."""
        out = super().forward(tensordict)
        for key in ("loss_objective", "loss_entropy"):
            if key in out.keys():  # noqa: SIM118 (`in` is not defined on a TensorDict)
                out[key] = out[key] * self.num_levels
        return out


@register_method("ppo", config=PPOConfig, search_space=tuning_space(gae_lambda=(0.5, 0.95, 1.0)))
def ppo(config: PPOConfig, num_levels: int) -> Method:
    """PPO by torchrl's ClipPPOLoss and GAE; the reward at the last level only."""
    loss = LevelSummedPPOLoss(
        make_policy_head(),
        num_levels=num_levels,
        clip=config.clip,
        entropy_coefficient=config.entropy_coefficient,
    )
    advantage = LevelGAE(discount=config.discount, gae_lambda=config.gae_lambda)
    return Method(advantage, loss, uses_critic=True)
