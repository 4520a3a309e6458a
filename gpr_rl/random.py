"""Random draws keyed by what they are for, not by when they are made.

A counter-based hash gives every (seed, purpose, request id, draw) its own uniform number, so
results do not depend on batches, workers or an interruption, and two methods that meet the same
request meet the same luck.
"""

from enum import IntEnum

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as signed 64 bit
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


class Purpose(IntEnum):
    """What a draw decides. Add at the end: the numbers are part of every result."""

    SAMPLE_PATH = 1
    ROLLOUT_REQUESTS = 2
    EVALUATION = 3
    ENVIRONMENT_REQUEST = 4
    WINDOW = 5
    CRITIC = 6
    IMPRESSION_KEPT = 7
    LOGGED_REQUEST = 8
    LOGGED_AD = 9
    LOGGED_CLICK = 10
    LOGGED_CONVERSION = 11
    DAY = 12
    ARRIVAL = 13
    CLICK = 14
    CONVERSION = 15
    CONVERSION_DELAY = 16
    RIVAL = 17
    PACING = 18
    AUCTION_TIE = 19
    DAY_IMPRESSION_KEPT = 20
    LOGGED_EXAMINATION = 21
    GUMBEL = 22
    MARKET_PRICE = 23
    REALISED = 24
    ACTIVE_REQUEST = 25
    SHUFFLED_POPULARITY = 26
    RANKER_ENSEMBLE = 27
    TUNING = 28
    CRITIC_REPLAY = 29
    IMPORTED_USER = 30
    IMPORTED_AD = 31
    REFINING_NOISE = 32
    TREE_SEARCH = 33


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # logical, not arithmetic


def _mix(x: Tensor) -> Tensor:
    """Finalise one 64-bit word (the SplitMix64 finaliser, Steele et al. 2014)."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def random_bits(seed: int, purpose: Purpose, *keys: Tensor) -> Tensor:
    """Return one hashed int64 per element of the broadcast `keys` (int64 tensors)."""
    state = _mix(torch.tensor(seed * 1_000_003 + int(purpose)) + _GOLDEN)
    for key in keys:
        state = _mix(_mix(key + _GOLDEN) + state * 3 + _GOLDEN)
    return state


def uniform(seed: int, purpose: Purpose, *keys: Tensor) -> Tensor:
    """Return float64 draws strictly inside (0, 1), one per element of the broadcast `keys`."""
    return (_shift(random_bits(seed, purpose, *keys), 12).double() + 0.5) / 2.0**52
