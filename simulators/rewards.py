"""Rewards: plain functions of an outcome, batched over candidates (GPR Eq. 5).

Dims: B requests, K candidates.
"""

import importlib
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from tensordict import TensorClass
from torch import Tensor


class Outcome(TensorClass):
    """What the frozen rankers say of K candidates of B requests, batch [B, K]."""

    request_id: Tensor  # int64 [B, K]
    user_id: Tensor  # int64 [B, K]
    ad_id: Tensor  # int64 [B, K]
    pctr: Tensor  # float [B, K] in [0, 1]; ones in a world without clicks
    pcvr: Tensor  # float [B, K] in [0, 1]
    bid: Tensor  # float [B, K], per 1,000 impressions, click or conversion, see bid_type
    bid_type: Tensor  # int64 [B, K]: 0 CPM, 1 CPC, 2 OCPA
    ecpm: Tensor  # float [B, K], expected revenue per 1,000 impressions
    advertiser: Tensor  # int64 [B, K]
    category: Tensor  # int64 [B, K]
    price: Tensor  # float [B, K], of the advertised product
    alpha: Tensor  # float [B, K, 2], weights of pCTR and pCVR in Eq. 5, frozen in the world


RewardFunction = Callable[[Outcome], Tensor]
_REWARDS: dict[str, RewardFunction] = {}


class RewardError(ValueError):
    """A reward function failed, or returned something that can't be a reward."""


def register_reward(name: str) -> Callable[[RewardFunction], RewardFunction]:
    """Make a reward available under a name: `register_reward("name")(function)`."""

    def register(function: RewardFunction) -> RewardFunction:
        _REWARDS[name] = function
        return function

    return register


def ecpm(
    pctr: Float[Tensor, "*shape"],
    pcvr: Float[Tensor, "*shape"],
    bid: Float[Tensor, "*shape"],
    bid_type: Int[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """Return expected revenue per 1,000 impressions.

    CPM: the bid. CPC: 1000 pCTR bid. OCPA: 1000 pCTR pCVR bid.
    """
    per_click = 1000.0 * pctr * bid
    return torch.where(bid_type == 0, bid, torch.where(bid_type == 1, per_click, per_click * pcvr))


@register_reward("final_value")
def final_value(outcome: Outcome) -> Float[Tensor, "B K"]:
    """GPR Eq. 5: eCPM + (1/M) sum_i alpha_i target_i with targets pCTR and pCVR, [B, K]."""
    targets = torch.stack([outcome.pctr, outcome.pcvr], dim=-1)
    return outcome.ecpm + (outcome.alpha * targets).mean(-1)


@register_reward("ecpm")
def ecpm_only(outcome: Outcome) -> Float[Tensor, "B K"]:
    """Expected revenue alone, [B, K]."""
    return outcome.ecpm


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
            message names the function, and the request and value of the first inf.
    """
    try:
        value = function(outcome)
    except Exception as error:
        raise RewardError(f"reward {name!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(value, Tensor):
        raise RewardError(f"reward {name!r} must return a tensor, got {type(value).__name__}")
    shape = tuple(outcome.ecpm.shape)
    if tuple(value.shape) != shape:
        raise RewardError(
            f"reward {name!r} must return shape {shape}, got {tuple(value.shape)} for the batch "
            f"of request {outcome.request_id.flatten()[0].item()}"
        )
    infinite = torch.isinf(value)
    if infinite.any():
        at = infinite.nonzero()[0].tolist()
        raise RewardError(
            f"reward {name!r} returned {value[tuple(at)].item()} for request "
            f"{outcome.request_id[tuple(at)].item()} (ad {outcome.ad_id[tuple(at)].item()})"
        )
    return value.to(outcome.ecpm.dtype)


@dataclass(frozen=True)
class RewardMix:
    """A weighted sum of rewards. Weight 0 only logs; NaN counts as not applicable."""

    functions: Mapping[str, RewardFunction]
    weights: Mapping[str, float]

    @classmethod
    def from_specs(cls, specs: tuple[str, ...] | list[str]) -> "RewardMix":
        """Build from command-line specs (`load_reward`); an empty list means `final_value`."""
        loaded = [load_reward(spec) for spec in (specs or ["final_value"])]
        names = [name for name, _, _ in loaded]
        for name in names:
            if names.count(name) > 1:
                raise RewardError(f"reward {name!r} is given {names.count(name)} times")
        return cls(
            {name: function for name, function, _ in loaded},
            {name: weight for name, _, weight in loaded},
        )

    def __call__(self, outcome: Outcome) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total reward [B, K] and every unweighted component by name."""
        components = {
            name: evaluate_reward(name, function, outcome)
            for name, function in self.functions.items()
        }
        total = torch.zeros_like(outcome.ecpm)
        for name, value in components.items():
            if self.weights[name] != 0.0:
                total = total + self.weights[name] * value.nan_to_num(nan=0.0)
        return total, components
