"""A method in one module: loss, dials and registration, as a user or this package would add it.

The loss pulls up each candidate's path by its reward to a power, -mean R^power log pi(path).
"""

from dataclasses import dataclass

from tensordict import TensorDict, TensorDictBase
from torch.distributions import Distribution

from agents.actor_critic import make_policy_head
from agents.candidates import check_above, mean_over_candidates
from agents.methods import Method, TrainConfig, register_method
from agents.modules.rollout_loss import Actor, RolloutLoss, path_log_prob


@dataclass(frozen=True, kw_only=True)
class ToyConfig(TrainConfig):
    """All dials, and the toy's own."""

    toy_power: float = 1.0
    """Of the reward."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above("toy_power", self.toy_power)


class ToyLoss(RolloutLoss):
    """See the module."""

    reads = ("codes", "valid", "terminal_reward")

    def __init__(self, actor_network: Actor, *, power: float) -> None:
        super().__init__(actor_network)
        self.power = power

    def losses(self, data: TensorDictBase, distribution: Distribution) -> TensorDict:
        pull = data["terminal_reward"].pow(self.power) * path_log_prob(data, distribution)
        return TensorDict({"loss_objective": -mean_over_candidates(pull, data["valid"])})


@register_method(
    "toy",
    config=ToyConfig,
    learning_rate=0.5,
    search_space={"learning_rate": (0.1, 0.5), "toy_power": (1.0, 2.0)},
)
def toy(config: ToyConfig, num_levels: int) -> Method:
    return Method(None, ToyLoss(make_policy_head(), power=config.toy_power))
