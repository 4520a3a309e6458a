"""Frozen pCTR and pCVR rankers: the reward simulator (GPR 3.3).

Dims: B requests, K candidates, F count features.
"""

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from gpr_rl.checkpoint import below
from gpr_rl.schema import with_tuples
from simulators.rankers.exact import ExactRankers
from simulators.rankers.network import Calibration, RankerConfig, Rankers
from simulators.world import World
from simulators.world.features import Counts, RankerInput


class FrozenRankers(nn.Module):
    """Calibrated rankers with every ad-only part precomputed; no gradient, no training mode."""

    def __init__(
        self,
        rankers: Rankers,
        calibration: Calibration,
        has_clicks: bool,
        has_conversions: bool = True,
    ) -> None:
        super().__init__()
        self.rankers = rankers.eval().requires_grad_(False)
        self.calibration = calibration
        self.has_clicks, self.has_conversions = has_clicks, has_conversions
        self.tables = rankers.tables()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrozenRankers":
        """Move or cast the tables with the weights."""
        super()._apply(fn, recurse)
        ads, queries, keys = (fn(table) for table in self.tables)
        self.tables = ads, queries, keys
        return self

    @cached_property
    def _exact(self) -> ExactRankers:
        return ExactRankers(self.rankers, self.calibration)

    def forward(
        self, inputs: RankerInput, past: Counts, ad_id: Tensor, *, exact: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return pCTR and pCVR, float32 [B, K] each.

        pCTR is 1 in a world without clicks, pCVR 0 in one without conversions. `exact` computes in
        float64, so that a row's float32 result does not depend on what else is in the batch
        (float32 sums differ by some 1e-6 between batch sizes).
        """
        if exact:
            counts = past.exact(self.rankers.group, ad_id)
            exactly = self._exact(inputs, counts, ad_id.numpy())
            probability = torch.from_numpy(exactly.astype(np.float32))
        else:
            with torch.no_grad():
                own = past.of(self.rankers.group, ad_id)
                probability = self.calibration(self.rankers(inputs, own, ad_id, self.tables))
        pctr, pcvr = probability.unbind(-1)
        pctr = pctr if self.has_clicks else torch.ones_like(pctr)
        return pctr, (pcvr if self.has_conversions else torch.zeros_like(pcvr))


def build_rankers(world: World, seed: int | None = None) -> Rankers:
    """Return untrained rankers of the world's shape, with initial weights by the seed if given."""
    if seed is not None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return build_rankers(world)
    price = torch.log(world.price)
    spread = price.std().clamp_min(1e-6) if len(price) > 1 else price.new_ones(())
    price = (price - price.mean()) / spread
    return Rankers(
        RankerConfig(**with_tuples(world.info.ranker_config)),
        world.item_embedding,
        world.group,
        price,
    )


def restore_rankers(world: World, tensors: dict[str, Tensor]) -> FrozenRankers:
    """Return frozen rankers from what `ranker_tensors` gave."""
    rankers = build_rankers(world)
    rankers.load_state_dict(below("rankers.", tensors))
    calibration = Calibration(**below("calibration.", tensors))
    return FrozenRankers(rankers, calibration, world.info.has_clicks, world.info.has_conversions)


def ranker_tensors(frozen: FrozenRankers) -> dict[str, Tensor]:
    """Return the weights and calibration knots for safetensors."""
    return {name: tensor.contiguous() for name, tensor in frozen.state_dict().items()}
