"""Who really clicks and converts in a simulated day.

Dims: B requests, S ad slots.
"""

from typing import Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from simulators.day.live import Moment
from simulators.synthetic.behavior import HiddenTruth
from simulators.synthetic.evaluator import read_truth
from simulators.world.history import DAY_S, count_kinds
from simulators.world.world import HOUR_S, World


@runtime_checkable
class Reality(Protocol):
    """Probabilities that realised events are drawn from."""

    def probabilities(
        self, moment: Moment, ad_id: Int[Tensor, "B S"]
    ) -> tuple[Float[Tensor, "B S"], Float[Tensor, "B S"]]:
        """Return click and conversion probabilities of ads (-1 is scored as ad 0)."""


class TrueBehavior:
    """The hidden truth of a synthetic world, fatigue with what was shown today included."""

    def __init__(self, world: World, truth: HiddenTruth) -> None:
        self._world, self._truth = world, truth

    def probabilities(
        self, moment: Moment, ad_id: Int[Tensor, "B S"]
    ) -> tuple[Float[Tensor, "B S"], Float[Tensor, "B S"]]:
        """Return true probabilities."""
        shown = ad_id.clamp_min(0)
        advertiser = self._world.group[shown, 2]
        seen = moment.past(self._world).of_groups(advertiser.numpy())
        recent = count_kinds(torch.from_numpy(seen))[..., 4]
        scene, position = moment.context[:, 0], moment.context[:, 1]
        day, hour = moment.time // DAY_S, moment.time % DAY_S // HOUR_S
        return self._truth.probabilities(moment.user, day, hour, scene, position, shown, recent)


class RankedBehavior:
    """For worlds without a known truth: users behave as the frozen rankers say."""

    def __init__(self, world: World) -> None:
        self._world = world

    def probabilities(
        self, moment: Moment, ad_id: Int[Tensor, "B S"]
    ) -> tuple[Float[Tensor, "B S"], Float[Tensor, "B S"]]:
        """Return the rankers' probabilities."""
        inputs, past = moment.features(self._world)
        return self._world.rankers(inputs, past, ad_id.clamp_min(0), exact=True)


_TRUTHS: WeakKeyDictionary[World, HiddenTruth] = WeakKeyDictionary()
"""Read once per world. Values must not hold the world, or it would never be freed."""


def reality_of(world: World) -> Reality:
    """Return the truth of a world that has one, otherwise its rankers."""
    if not world.info.has_truth:
        return RankedBehavior(world)
    if world not in _TRUTHS:
        _TRUTHS[world] = read_truth(world)
    return TrueBehavior(world, _TRUTHS[world])
