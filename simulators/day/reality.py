"""Who really clicks and converts in a simulated day.

Dims: B requests, S ad slots.
"""

from collections.abc import Callable
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from simulators.day.live import Moment
from simulators.synthetic.behavior import HiddenTruth
from simulators.synthetic.evaluator import read_truth
from simulators.world import World
from simulators.world.history import DAY_S, count_kinds

Reality = Callable[[Moment, Tensor], tuple[Tensor, Tensor]]
"""From requests and ads, int64 [B, S] (-1 is scored as ad 0), to the click and conversion
probabilities that realised events are drawn from, float [B, S] each."""
_TRUTHS: WeakKeyDictionary[World, HiddenTruth] = WeakKeyDictionary()
"""Read once per world. Values must not hold the world, or it would never be freed."""


def reality_of(world: World) -> Reality:
    """Return the truth of a world that has one, otherwise users who behave as the rankers say."""
    if not world.info.has_truth:
        return partial(_as_ranked, world)
    if world not in _TRUTHS:
        _TRUTHS[world] = read_truth(world)
    return partial(_in_truth, world, _TRUTHS[world])


def _in_truth(
    world: World, truth: HiddenTruth, moment: Moment, ad_id: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the hidden truth, fatigue with what was shown today included."""
    shown = ad_id.clamp_min(0)
    seen = moment.past(world).of_groups(world.group[shown, 2].numpy())
    recent = count_kinds(torch.from_numpy(seen))[..., 4]
    scene, position, hour, _ = moment.context.unbind(-1)
    day = moment.time // DAY_S
    return truth.probabilities(moment.user, day, hour, scene, position, shown, recent)


def _as_ranked(world: World, moment: Moment, ad_id: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the frozen rankers say."""
    return world.rankers(*moment.features(world), ad_id.clamp_min(0), exact=True)
