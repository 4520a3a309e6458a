"""What the losses share around their formula: the actor's pass, the keys, the entropy's report.

Dims: B requests, K candidates, L levels, V codes per level.
"""

from typing import Any, ClassVar, NoReturn, TypeAlias

import torch
from jaxtyping import Float
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential
from torch import Tensor
from torch.distributions import Distribution
from torchrl.objectives import LossModule

from agents.actor_critic import chosen_log_prob
from agents.candidates import keep_valid, mean_over_candidates
from agents.modules.keys import accepted_keys, key_of, read_keys

Actor: TypeAlias = ProbabilisticTensorDictModule | ProbabilisticTensorDictSequential
"""Gives a masked categorical [B, K, L, V] through `get_dist`."""


class RolloutLoss(LossModule):
    """A torchrl loss over a rollout's candidates; a subclass adds its formula in `losses`.

    The actor keeps its own parameters (`functional` is False), so there are no target parameters.
    """

    reads: ClassVar[tuple[str, ...]]
    """Keys beside the actor's own, `valid` among them; shapes: see `agents.rollout`."""
    writes: ClassVar[tuple[str, ...]] = ("loss_objective", "entropy")
    """What `losses` returns, and `entropy` (nats, summed over levels)."""
    default_keys: ClassVar[type]
    """The names under which `set_keys` knows what is read; torchrl's, where it has a word."""
    actor_network: Actor

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "reads" in vars(cls):
            cls._AcceptedKeys = accepted_keys(cls, cls.reads)
            cls.default_keys = cls._AcceptedKeys

    def __init__(self, actor_network: Actor) -> None:
        """Store the actor (shared, not copied)."""
        super().__init__()
        self.actor_network = actor_network
        self.out_keys = list(self.writes)

    @property
    def in_keys(self) -> list[Any]:
        """What the loss and its networks read."""
        own = [key_of(self.tensor_keys, key) for key in self.read_now()]
        return list(dict.fromkeys([*own, *self.network_keys()]))

    @in_keys.setter
    def in_keys(self, keys: Any) -> None:
        raise AttributeError("in_keys follow the actor and set_keys; change those")

    def read_now(self) -> tuple[str, ...]:
        """Return those of `reads` that the loss takes from the data as it is set up."""
        return self.reads

    def network_keys(self) -> list[Any]:
        """Return what the networks take from the data."""
        return list(self.actor_network.in_keys)

    def make_value_estimator(self, value_type: Any = None, **hyperparams: Any) -> NoReturn:
        """Refuse: advantages are written into the data before.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            f"{type(self).__name__} reads advantages and estimates none: write them with "
            "agents.objectives.HEPOAdvantage (or LevelGAE, GRPOAdvantage) before the loss"
        )

    @property
    def functional(self) -> bool:
        """False: the networks keep their own parameters."""
        return False

    def count(self, data: TensorDictBase) -> Tensor:
        """Return how many terms `loss_objective` is the mean over; all valid candidates here."""
        return data["valid"].sum()

    def losses(self, data: TensorDictBase, distribution: Distribution) -> TensorDict:
        """Return `loss_*` to be summed and minimised, and diagnostics without a gradient."""
        raise NotImplementedError

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the losses and their diagnostics; `tensordict` is left as it is."""
        data = read_keys(self.tensor_keys, self.reads, tensordict)
        distribution = self.actor_network.get_dist(data)
        out = self.losses(data, distribution)
        with torch.no_grad():
            out["entropy"] = mean_over_candidates(distribution.entropy(), data["valid"])
        return out


def path_log_prob(data: TensorDictBase, distribution: Distribution) -> Float[Tensor, "B K"]:
    """Return log pi of the whole paths, nats; 0 where not valid."""
    return keep_valid(distribution.log_prob(data["codes"]), data["valid"]).sum(-1)


def reference_path_log_prob(data: TensorDictBase) -> Float[Tensor, "B K"]:
    """Return the same under the frozen reference, from `reference_log_probs` [B, K, L, V]."""
    chosen = chosen_log_prob(data["reference_log_probs"], data["codes"])
    return keep_valid(chosen, data["valid"]).sum(-1)
