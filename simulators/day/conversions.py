"""Conversions on their way: drawn at the click, known when their time has come.

Dims: M markets, C conversions.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Conversions:
    """C conversions, [C] each."""

    market: Tensor
    number: Tensor
    """Request of the day that showed the ad."""
    slot: Tensor
    ad_id: Tensor
    price: Tensor
    """float64, what an OCPA ad pays for it."""
    time: Tensor

    def rows(self, index: Tensor) -> "Conversions":
        """Return those of an index or a mask."""
        return Conversions(**{name: value[index] for name, value in vars(self).items()})


class PendingConversions:
    """What markets still wait for."""

    def __init__(self) -> None:
        none = torch.zeros(0, dtype=torch.int64)
        self._all = Conversions(none, none, none, none, none.double(), none)

    def reset(self, markets: Bool[Tensor, " M"]) -> None:
        """Forget what the given markets wait for."""
        self._all = self._all.rows(~markets[self._all.market])

    def add(self, new: Conversions) -> None:
        """Store conversions that are to come."""
        old = vars(self._all)
        self._all = Conversions(**{k: torch.cat([old[k], v]) for k, v in vars(new).items()})

    def take(self, markets: Bool[Tensor, " M"], now: Int[Tensor, " M"]) -> Conversions:
        """Return and forget the conversions of `markets` with time <= `now`.

        In order of market and time; equal times by request and slot.
        """
        market, time = self._all.market, self._all.time
        come = (time <= now[market]) & markets[market]
        if not come.any():
            return self._all.rows(come)
        taken, self._all = self._all.rows(come), self._all.rows(~come)
        order = np.lexsort((taken.slot, taken.number, taken.time, taken.market))
        return taken.rows(torch.from_numpy(order))
