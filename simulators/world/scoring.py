"""What a world asks of its rankers; it knows no more of them.

Dims: B requests, K candidates, F count features.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@runtime_checkable
class Counts(Protocol):
    """What B users did before their requests: `features.PastCounts`, or that of a day's traffic."""

    def of(self, group: Tensor, ad_id: Tensor) -> Tensor:
        """Return the count features of candidates `ad_id` [B, K], float32 [B, K, F]."""

    def exact(self, group: Tensor, ad_id: Tensor) -> NDArray[np.float64]:
        """Return the same in float64."""


WorldRankers = Callable[..., tuple[Tensor, Tensor]]
"""From inputs [B], `Counts` and candidates [B, K] to pCTR and pCVR, float32 [B, K] each; with
`exact=True` computed in float64. `rankers.frozen.FrozenRankers` is it."""


def no_rankers(*_: object, **__: object) -> tuple[Tensor, Tensor]:
    """Stand in the place of rankers in a world that they are still to be trained on: raise."""
    raise RuntimeError("this world has no rankers yet, so candidates have no outcome")
