"""Bidders replayed against a log of auctions with known market prices, such as iPinYou's.

Imports NumPy, pandas and the readers of `simulators.imported`; no world.
Start with `replay.run`; `rlb` is the RL bidder of Cai et al. 2017.
"""

from simulators.replay.replay import (
    Bidder,
    ConstantBidder,
    LinearBidder,
    MaxCPCBidder,
    ReplayResult,
    VectorBidder,
    run,
    tune_linear,
)
from simulators.replay.rlb import RLBBidder, RLBConfig

__all__ = [
    "Bidder",
    "ConstantBidder",
    "LinearBidder",
    "MaxCPCBidder",
    "RLBBidder",
    "RLBConfig",
    "ReplayResult",
    "VectorBidder",
    "run",
    "tune_linear",
]
