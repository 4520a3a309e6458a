"""Conversions on their way: drawn at the click, known when their time has come.

Dims: M markets, P places, C conversions.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

_NEVER = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Conversions:
    """C conversions, [C] each, in order of market and time; equal times by request and slot."""

    market: Tensor
    number: Tensor
    """Request of the day that showed the ad."""
    slot: Tensor
    ad_id: Tensor
    price: Tensor
    """float64, what an OCPA ad pays for it."""
    time: Tensor


class PendingConversions:
    """What M markets still wait for."""

    def __init__(self, num_markets: int) -> None:
        self._time = torch.full((num_markets, 1), _NEVER)
        zero = torch.zeros(num_markets, 1, dtype=torch.int64)
        self._columns = {name: zero.clone() for name in ("number", "slot", "ad_id")}
        self._columns["price"] = zero.double()

    def reset(self, markets: Bool[Tensor, " M"]) -> None:
        """Forget what the given markets wait for."""
        self._time[markets] = _NEVER

    def add(self, market: Int[Tensor, " C"], **columns: Tensor) -> None:
        """Store conversions that are to come.

        Args:
            market: int64 [C]; rows of one market stand together.
            columns: time, number, slot, ad_id and price, [C] each; see `Conversions`.
        """
        index = torch.arange(len(market))
        opens = torch.ones_like(market, dtype=torch.bool)
        opens[1:] = market[1:] != market[:-1]
        rank = index - torch.where(opens, index, 0).cummax(0).values  # within the market
        while ((self._time[market] == _NEVER).sum(1) <= rank).any():
            self._grow()
        free = self._time[market] == _NEVER
        place = (free & (free.cumsum(1) == rank[:, None] + 1)).to(torch.int8).argmax(1)
        self._time[market, place] = columns.pop("time")
        for name, value in columns.items():
            self._columns[name][market, place] = value

    def _grow(self) -> None:
        more = self._time.shape[1]
        pad = torch.nn.functional.pad
        never = torch.full_like(self._time, _NEVER)  # padding with it would go through float
        self._time = torch.cat([self._time, never], dim=1)
        self._columns = {name: pad(value, (0, more)) for name, value in self._columns.items()}

    def take(self, markets: Bool[Tensor, " M"], now: Int[Tensor, " M"]) -> Conversions:
        """Return and forget the conversions of `markets` with time <= `now`."""
        come = (self._time <= now[:, None]) & markets[:, None]
        market, place = come.nonzero().unbind(1)
        time = self._time[market, place]
        order = torch.arange(len(time))
        for key in (self._columns["slot"], self._columns["number"], self._time):
            order = order[key[market, place][order].argsort(stable=True)]
        order = order[market[order].argsort(stable=True)]
        market, place, time = market[order], place[order], time[order]
        self._time[market, place] = _NEVER
        taken = {name: value[market, place] for name, value in self._columns.items()}
        return Conversions(market=market, time=time, **taken)
