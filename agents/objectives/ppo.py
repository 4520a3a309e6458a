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
from agents.candidates import next_values
from agents.critic import CriticConfig
from agents.modules.keys import KeyedModule
from agents.modules.rollout_loss import Actor
from agents.objectives.surrogate import SurrogateConfig
from agents.registry import Method, register_method, tuning_space


@dataclass(frozen=True, kw_only=True)
class PPOConfig(SurrogateConfig, CriticConfig):
    """The dials of ppo: none of its own."""


_NEXT_KEYS = (("next", "reward"), ("next", "done"), ("next", "terminated"))


class LevelGAE(KeyedModule):
    """torchrl's GAE with the levels as time: writes `advantage` and `value_target` [B, K, L, 1].

    A rollout has batch [B], so that the HSD runs once per request; torchrl's GAE takes the last
    batch dimension for time, so it gets a view with batch [B, K, L]. Reads `state_value` and what
    follows each step (`next`); `value_network` as for `HEPOAdvantage`.
    """

    reads = ("state_value",)
    writes = ("advantage", "value_target")

    def __init__(
        self,
        value_network: TensorDictModuleBase | None = None,
        *,
        discount: float = 1.0,
        gae_lambda: float = 0.95,
    ) -> None:
        """Store torchrl's gamma and lambda, both in [0, 1]."""
        super().__init__()
        # Without a dtype torchrl rounds them to float32, also for float64 rollouts.
        gamma, lmbda = torch.tensor([discount, gae_lambda], dtype=torch.float64).unbind()
        self.gae = GAE(gamma=gamma, lmbda=lmbda, value_network=None)
        self.take_values(value_network)

    def _name_keys(self) -> None:
        super()._name_keys()
        self.in_keys = [*self.in_keys, *_NEXT_KEYS]

    def write(self, data: TensorDictBase) -> TensorDictBase:
        """Set advantage and value target by torchrl's GAE."""
        value = data["state_value"]
        steps = data.select("state_value", *_NEXT_KEYS)
        steps["next", "state_value"] = next_values(value)
        steps.batch_size = value.shape[:-1]
        steps = self.gae(steps)
        return data.update(steps.select(*self.writes))


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
