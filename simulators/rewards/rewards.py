"""Rewards: plain functions of an outcome, batched over candidates (GPR Eq. 5).

Dims: B requests, K candidates.
"""

import importlib
import inspect
import math
import numbers
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Union

import torch
from jaxtyping import Float
from torch import Tensor

from simulators.rewards import shipped
from simulators.rewards.outcome import Outcome

RewardFunction = Callable[[Outcome], Tensor]
RewardSpec = Union[
    "RewardMix",
    RewardFunction,
    str,
    Sequence[str | RewardFunction],
    Mapping[str, float],
    None,
]
"""What a user may pass as a reward, everywhere; read by `RewardMix.of`."""
_REWARDS: dict[str, RewardFunction] = {
    "final_value": shipped.final_value,
    "ecpm": shipped.ecpm_only,
    "revenue": shipped.revenue,
    "gmv": shipped.gmv,
    "user_value": shipped.user_value,
    "user_value_aware": shipped.user_value_aware,
    "budget_aware": shipped.budget_aware,
    "fairness": shipped.fairness,
}


class RewardError(ValueError):
    """A reward function failed, or returned something that can't be a reward."""


def _origin(function: RewardFunction) -> str:
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def _place(function: RewardFunction) -> tuple[str, str]:
    """Return where a definition stands: file and name, whatever its module is called."""
    inner = inspect.unwrap(function)
    code = getattr(inner, "__code__", None)
    return ("", _origin(function)) if code is None else (code.co_filename, inner.__qualname__)


def register_reward(name: str) -> Callable[[RewardFunction], RewardFunction]:
    """Make a reward available under a name: `register_reward("name")(function)`.

    Anything that can be called with an `Outcome` will do: a function, a lambda, an object with
    `__call__`. Running the same definition again, as a notebook does, replaces the old one.

    Raises:
        RewardError: The name is empty or holds `=` or `:` (a spec could not name it), something
            that is not callable is registered, or another definition has the name.
    """
    if not name or "=" in name or ":" in name:
        raise RewardError(f"a reward's name must be non-empty without '=' and ':', got {name!r}")

    def register(function: RewardFunction) -> RewardFunction:
        if not callable(function):
            raise RewardError(
                f"reward {name!r} must be callable, got {type(function).__name__} {function!r}"
            )
        known = _REWARDS.get(name)
        same = known is not None and (
            _origin(known) == _origin(function) or _place(known) == _place(function)
        )
        if known is not None and not same:
            raise RewardError(
                f"reward {name!r} is registered already, by {_origin(known)}; "
                f"{_origin(function)} needs another name"
            )
        _REWARDS[name] = function
        return function

    return register


def load_reward(spec: str) -> tuple[str, RewardFunction, float]:
    """Read `name`, `name=weight`, `package.module:function` or `package.module:function=weight`.

    Modules are found on PYTHONPATH and in the current directory.

    Returns:
        The reward's name, the function and its weight (1 if none is given).

    Raises:
        RewardError: Unknown name, module or function, or a weight that is not a number.
    """
    target, given, weight_text = spec.partition("=")
    try:
        weight = float(weight_text) if given else 1.0
    except ValueError as error:
        raise RewardError(f"reward {spec!r}: weight {weight_text!r} is not a number") from error
    if not math.isfinite(weight):
        raise RewardError(f"reward {spec!r}: weight must be finite, got {weight}")
    if ":" not in target:
        if target not in _REWARDS:
            raise RewardError(
                f"unknown reward {target!r}; registered: {', '.join(sorted(_REWARDS))}"
            )
        return target, _REWARDS[target], weight
    module_name, _, function_name = target.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise RewardError(f"reward {spec!r}: can't import {module_name!r}: {error}") from error
    finally:
        if added:
            sys.path.remove(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise RewardError(f"reward {spec!r}: {module_name!r} has no function {function_name!r}")
    return target, function, weight


def evaluate_reward(name: str, function: RewardFunction, outcome: Outcome) -> Float[Tensor, "B K"]:
    """Call one reward and check what it returns: float [B, K], finite or NaN (not applicable).

    Raises:
        RewardError: The function raised, or returned another type, another shape or inf; the
            message names the function, the request (the batch's first one unless a value is at
            fault) and the value.
    """
    try:
        value = function(outcome)
    except Exception as error:
        raise RewardError(
            f"reward {name!r} raised {type(error).__name__}: {error} {_batch(outcome)}"
        ) from error
    if not isinstance(value, Tensor):
        raise RewardError(
            f"reward {name!r} must return a tensor, got {type(value).__name__} {_batch(outcome)}"
        )
    shape = tuple(outcome.ecpm.shape)
    if tuple(value.shape) != shape:
        raise RewardError(
            f"reward {name!r} must return shape {shape}, got {tuple(value.shape)} {_batch(outcome)}"
        )
    for at in map(tuple, torch.isinf(value).nonzero().tolist()):
        raise RewardError(
            f"reward {name!r} returned {value[at].item()} for request "
            f"{outcome.request_id[at].item()} (ad {outcome.ad_id[at].item()})"
        )
    return value.to(outcome.ecpm.dtype)


def _batch(outcome: Outcome) -> str:
    first = outcome.request_id.flatten()[:1].tolist()
    return f"for the batch of request {first[0]}" if first else "for an empty batch"


def _named(reward: object) -> tuple[str, RewardFunction, float]:
    """Return name, function and weight of one spec or function."""
    if isinstance(reward, str):
        return load_reward(reward)
    if isinstance(reward, RewardMix) or not callable(reward):
        raise RewardError(
            "one of several rewards must be a name, `module:function` or a function, got "
            f"{type(reward).__name__} {reward!r}"
        )
    return getattr(reward, "__name__", type(reward).__name__), reward, 1.0


def _check_weight(name: str, weight: object) -> None:
    """Raise a RewardError, naming the reward, if its weight is no finite number."""
    is_number = isinstance(weight, numbers.Real) and not isinstance(weight, bool)
    if not is_number or not math.isfinite(weight):  # type: ignore[arg-type]
        raise RewardError(f"reward {name!r}: weight must be a finite number, got {weight!r}")


def _weighted(spec: object, weight: object) -> tuple[str, RewardFunction, float]:
    """Return name, function and weight of an entry of a mapping."""
    if not isinstance(spec, str):
        raise RewardError(
            f"a mapping of rewards goes from name to weight, got {type(spec).__name__} {spec!r}"
        )
    if "=" in spec:
        raise RewardError(f"reward {spec!r} has a weight and is mapped to another, {weight!r}")
    _check_weight(spec, weight)
    return (*load_reward(spec)[:2], float(weight))  # type: ignore[arg-type]


@dataclass(frozen=True)
class RewardMix:
    """A weighted sum of rewards. Weight 0 only logs; NaN counts as not applicable."""

    functions: Mapping[str, RewardFunction]
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.functions:
            raise RewardError("a reward needs at least one function, got none")
        if set(self.functions) != set(self.weights):
            raise RewardError(
                f"a reward's functions and weights must have the same names, got "
                f"{sorted(self.functions)} and {sorted(self.weights)}"
            )
        for name, weight in self.weights.items():
            _check_weight(name, weight)

    @classmethod
    def of(cls, reward: RewardSpec) -> "RewardMix":
        """Return the mix that a user means, whatever way it was written.

        Args:
            reward: None or nothing in a list for `final_value`; a mix, as it is; a spec
                (`load_reward`); a function of an `Outcome`; several specs or functions, in a list
                or tuple; or a mapping from spec to weight, `{"final_value": 0.0, "gmv": 5.0}`.

        Raises:
            RewardError: Anything else, a spec that can't be loaded, a name that stands twice, or
                a weight that is not a finite number.
        """
        if isinstance(reward, RewardMix):
            return reward
        if reward is None or (isinstance(reward, (list, tuple)) and not reward):
            reward = "final_value"
        if isinstance(reward, str) or callable(reward):
            return cls._joined([_named(reward)])
        if isinstance(reward, Mapping):
            return cls._joined([_weighted(spec, weight) for spec, weight in reward.items()])
        if isinstance(reward, (list, tuple)):
            return cls._joined([_named(one) for one in reward])
        raise RewardError(
            "a reward must be a name, `module:function`, a function, a list or tuple of these, a "
            f"mapping from name to weight, or a RewardMix, got {type(reward).__name__} {reward!r}"
        )

    @classmethod
    def _joined(cls, parts: Sequence[tuple[str, RewardFunction, float]]) -> "RewardMix":
        for name, times in Counter(name for name, _, _ in parts).items():
            if times > 1:
                raise RewardError(f"reward {name!r} is given {times} times")
        return cls(
            {name: function for name, function, _ in parts},
            {name: weight for name, _, weight in parts},
        )

    @classmethod
    def from_specs(cls, specs: tuple[str, ...] | list[str]) -> "RewardMix":
        """Build from command-line specs (`load_reward`); an empty list means `final_value`."""
        return cls.of(specs)

    def __call__(self, outcome: Outcome) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total reward [B, K] and every unweighted component by name."""
        components = {
            name: evaluate_reward(name, function, outcome)
            for name, function in self.functions.items()
        }
        total = torch.zeros_like(outcome.ecpm)
        for value in self.weighted(components).values():
            total = total + value.nan_to_num(nan=0.0)
        return total, components

    def weighted(self, components: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what each component adds to the total: weight times value, same shapes.

        NaN (not applicable) stays NaN and adds 0.
        """
        return {name: self.weights[name] * value for name, value in components.items()}
