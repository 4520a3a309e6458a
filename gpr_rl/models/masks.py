"""Who may attend to whom, and how far apart they are in tokens and in time.

Dims: B sequences, T tokens, Q of them as queries, K of them as keys.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from gpr_rl.schema import NUM_TIME_GAPS, TokenType

NUM_DISTANCE_BUCKETS = 32
"""Half for the past (distance >= 0), half for later tokens of the prompt block."""
_EXACT = 8  # distances below it have a bucket each
NUM_TIME_BUCKETS = 24
"""Powers of two of seconds between two tokens: under 2 s, under 4 s, ..., from 97 days on."""
_ALL = slice(None)


def hybrid_mask(
    kind: Int[Tensor, "B T"],
    prompt_length: Int[Tensor, " B"],
    *,
    hybrid: bool = True,
    queries: slice = _ALL,
    keys: slice = _ALL,
) -> Bool[Tensor, "B Q K"]:
    """Return True where query i (dim 1) may see key j (dim 2): GPR Eq. 2 as corrected.

    i sees j if j <= i, or if both lie in the first `prompt_length` tokens and both are U, O or E.
    Eq. 2 as printed would block the past. Later U/O/E tokens attend causally, because an earlier
    position that sees a later event knows the future. Padding stands on the right, so no real token
    sees it. Without `hybrid` the mask is plainly causal.
    """
    index = torch.arange(kind.shape[1], device=kind.device)
    seen = (index[None, keys] <= index[queries, None])[None]
    if not hybrid:
        return seen.expand(len(kind), -1, -1)
    free = (kind != TokenType.ITEM) & (kind != TokenType.PAD)
    prompt = (index < prompt_length[:, None]) & free
    return (prompt[:, queries, None] & prompt[:, None, keys]) | seen


def bucket_of_distance(distance: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Return the bucket of i - j: exact below 8, then half powers of two up to 128.

    Later keys (j > i), visible in the prompt block only, have buckets of their own.
    """
    size = distance.abs()
    log_bucket = (torch.log2(size.clamp_min(_EXACT) / _EXACT) * 2).long() + _EXACT
    bucket = torch.where(size < _EXACT, size, log_bucket.clamp_max(NUM_DISTANCE_BUCKETS // 2 - 1))
    return bucket + (distance < 0) * (NUM_DISTANCE_BUCKETS // 2)


def token_time(time_gap: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Return about when each token happened, seconds since the sequence began.

    Each gap counts the middle of its bucket on the log scale (`time_gap_bucket`): 2^(b+2.5) s for
    bucket b, 4 s for the first. Only differences mean anything; no later token enters them.
    """
    bucket = torch.arange(NUM_TIME_GAPS, dtype=torch.float64, device=time_gap.device)
    seconds = (2 ** (bucket + 2.5)).round().long()
    seconds[0] = 4
    return seconds[time_gap].cumsum(1)


def time_bucket(difference: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Return floor(log2) of the seconds between two tokens, in [0, NUM_TIME_BUCKETS).

    The sign is dropped, as in HSTU: keys after the query exist in the prompt block only.
    """
    exponent = torch.frexp(difference.abs().clamp_min(1).double()).exponent.long() - 1
    return exponent.clamp_max(NUM_TIME_BUCKETS - 1)
