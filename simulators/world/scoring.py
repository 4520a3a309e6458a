"""What a world asks of its rankers; it knows no more of them.

Dims: B requests, K candidates, F count features.
"""

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from simulators.world.features import RankerInput


@runtime_checkable
class Counts(Protocol):
    """What B users did before their requests: `features.PastCounts`, or that of a day's traffic."""

    def of(self, group: Tensor, ad_id: Tensor) -> Tensor:
        """Return the count features of candidates `ad_id` [B, K], float32 [B, K, F]."""
        ...

    def exact(self, group: Tensor, ad_id: Tensor) -> NDArray[np.float64]:
        """Return the same in float64."""
        ...


@runtime_checkable
class WorldRankers(Protocol):
    """What a world asks of its rankers; `rankers.frozen.FrozenRankers` is it."""

    def __call__(
        self, inputs: RankerInput, past: Counts, ad_id: Tensor, *, exact: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return pCTR and pCVR, float32 [B, K] each."""
        ...


class NoRankers:
    """In the place of rankers, in a world that they are still to be trained on."""

    def __call__(
        self, inputs: RankerInput, past: Counts, ad_id: Tensor, *, exact: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Raise a RuntimeError."""
        raise RuntimeError("this world has no rankers yet, so candidates have no outcome")
