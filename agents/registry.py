"""Methods by name: what one is made of, and how tuning may change it.

A method is a pair of TorchRL modules: one writes advantages (or pairs) into the rollout, once per
step; the other turns the rollout and the current `logits` into losses, once per epoch. The loop,
the rollouts, the critic's schedule and the budget of ranker evaluations are the same for all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torchrl.objectives import LossModule

from agents.rollout import World
from agents.shared_config import SharedConfig

C = TypeVar("C", bound=SharedConfig)


@dataclass(frozen=True)
class Method:
    """What distinguishes a method."""

    advantage: TensorDictModuleBase | None
    """Writes into the rollout what `loss` needs, if anything; with a critic `value_target` too."""
    loss: LossModule
    """Reads the rollout and `logits`; everything named `loss_*` is summed and minimised."""
    uses_critic: bool = False
    """Train the HTE on `value_target`, with its warm-up."""
    uses_reference: bool = False
    """Give the loss `reference_log_probs` [B, K, L, V] of the warm start."""
    is_offline: bool = False
    """Draw the candidates from the warm start, not from the policy as it is."""
    prepare: Callable[[TensorDict, World, int], object] | None = None
    """Called with rollout, world and seed before `advantage`, to change the rollout in place."""


MethodFactory = Callable[[C, int], Method]
SearchSpace = Mapping[str, tuple[int | float, ...]]
"""Dials and the values that tuning may give them."""
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 2e-3)
KL_PENALTIES = (0.05, 0.2, 0.5)
CANDIDATES = (8, 16, 32)
"""K; a comparison at equal ranker evaluations takes fewer requests where it is larger."""
ENTROPIES = (0.0, 0.003, 0.01)
GRADIENT_NORMS = (0.3, 1.0, 3.0)


def tuning_space(*, has_entropy: bool = True, **own: tuple[int | float, ...]) -> SearchSpace:
    """Return learning rates, K, the pull to the warm start, the entropy bonus, and `own`.

    A loss without a bonus (`has_entropy=False`) varies the norm that its gradients are clipped to
    instead. With three values of one dial of its own, or of two where one is a `beta` and so the
    pull itself, all methods have as many combinations. None of these changes how many updates a
    method makes.
    """
    pulls = any(name.endswith("_beta") for name in own)
    return {
        "learning_rate": LEARNING_RATES,
        "num_candidates": CANDIDATES,
        **({} if pulls else {"kl_penalty": KL_PENALTIES}),
        **(
            {"entropy_coefficient": ENTROPIES} if has_entropy else {"max_grad_norm": GRADIENT_NORMS}
        ),
        **own,
    }


DEFAULT_SPACE = tuning_space(clip=(0.1, 0.2, 0.3))
PLAIN_SPACE = tuning_space(max_grad_norm=GRADIENT_NORMS)
"""For methods without a clip of the ratio."""


@dataclass(frozen=True)
class _Registered:
    factory: MethodFactory[Any]
    config: type[SharedConfig]
    learning_rate: float
    search_space: SearchSpace


_METHODS: dict[str, _Registered] = {}
_EVERY_DIAL: list[type[SharedConfig]] = [SharedConfig]


def with_every_dial(config: type[C]) -> type[C]:
    """Make a class, which it returns, the configuration of methods that name none."""
    _EVERY_DIAL.append(config)
    return config


def register_method(
    name: str,
    *,
    config: type[C] | None = None,
    learning_rate: float = 1e-3,
    search_space: SearchSpace = DEFAULT_SPACE,
) -> Callable[[MethodFactory[C]], MethodFactory[C]]:
    """Make a method available under a name, its factory decorated.

        @register_method("mine", learning_rate=1e-3)
        def mine(config: TrainConfig, num_levels: int) -> Method:
            return Method(GRPOAdvantage(), MyLoss(make_policy_head()))

    Args:
        name: Lower case, as in tables and on the command line.
        config: The dials that the factory reads, a frozen keyword-only dataclass; by default
            `TrainConfig`. A method with dials of its own extends that class, and has them at their
            defaults where a run's configuration is a plain `TrainConfig`.
        learning_rate: Adam's for the policy, unless the configuration sets one.
        search_space: What tuning may change. A fair comparison gives every method as many
            combinations.

    Raises:
        ValueError: The space has a field that the configuration has not.
    """
    known: type[SharedConfig] = _EVERY_DIAL[-1] if config is None else config
    unknown = set(search_space) - {field.name for field in fields(known)}
    if unknown:
        raise ValueError(f"the search space of {name!r} has unknown fields: {sorted(unknown)}")

    def register(factory: MethodFactory[C]) -> MethodFactory[C]:
        _METHODS[name] = _Registered(factory, known, learning_rate, search_space)
        return factory

    return register


def method_names() -> list[str]:
    """Return the registered names, in the order of registration."""
    return list(_METHODS)


def make_method(name: str, config: SharedConfig, num_levels: int) -> tuple[Method, float]:
    """Return the method and the policy's learning rate.

    Raises:
        ValueError: Unknown name, or a dial that the method can't take.
    """
    found, own = _find(name), method_config(name, config)
    for dial, length in (("level_weight", num_levels), ("process_reward_scale", num_levels - 1)):
        value = getattr(own, dial, 1.0)
        if isinstance(value, tuple) and value != () and len(value) != length:
            raise ValueError(
                f"{dial} must have {length} entries with {num_levels} levels, got {len(value)}"
            )
    return found.factory(own, num_levels), config.learning_rate or found.learning_rate


def method_config(name: str, config: SharedConfig) -> Any:
    """Return `config`, or a method's own configuration with the same values where it has more.

    Raises:
        ValueError: Unknown name.
    """
    kind = _find(name).config
    if isinstance(config, kind):
        return config
    given = {field.name for field in fields(config)} & {field.name for field in fields(kind)}
    return kind(**{field: getattr(config, field) for field in given})


def search_space(name: str) -> SearchSpace:
    """Return what tuning may change of a method; `learning_rate` defaults to its own.

    Raises:
        ValueError: Unknown name.
    """
    return _find(name).search_space


def default_learning_rate(name: str) -> float:
    """Return a method's own learning rate."""
    return _find(name).learning_rate


def _find(name: str) -> _Registered:
    if not isinstance(name, str) or name not in _METHODS:
        raise ValueError(f"unknown method {name!r}; registered: {', '.join(_METHODS)}")
    return _METHODS[name]
