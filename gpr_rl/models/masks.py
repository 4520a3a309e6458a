"""Who may attend to whom, and how far apart they are.

Dims: B sequences, T tokens.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from gpr_rl.schema import TokenType

NUM_DISTANCE_BUCKETS = 32
"""Half for the past (distance >= 0), half for later tokens of the prompt block."""
_EXACT = 8  # distances below it have a bucket each


def hybrid_mask(
    kind: Int[Tensor, "B T"], prompt_length: Int[Tensor, " B"], *, hybrid: bool = True
) -> Bool[Tensor, "B T T"]:
    """Return True where query i (dim 1) may see key j (dim 2): GPR Eq. 2 as corrected.

    i sees j if j <= i, or if both lie in the first `prompt_length` tokens and both are U, O or E.
    Eq. 2 as printed would block the past. Later U/O/E tokens attend causally, because an earlier
    position that sees a later event knows the future. Padding stands on the right, so no real token
    sees it; what padding itself sees is of no use to anyone.

    Args:
        kind: A TokenType per token; padding on the right.
        prompt_length: Leading tokens that form the prompt block.
        hybrid: False gives the plain causal mask.
    """
    index = torch.arange(kind.shape[1], device=kind.device)
    seen = (index[None, :] <= index[:, None])[None]
    if not hybrid:
        return seen.expand(len(kind), -1, -1)
    free = (kind != TokenType.ITEM) & (kind != TokenType.PAD)
    prompt = (index < prompt_length[:, None]) & free
    return (prompt[:, :, None] & prompt[:, None, :]) | seen


def distance_bucket(num_tokens: int, device: torch.device) -> Int[Tensor, "T T"]:
    """Return the bucket of i - j: exact below 8, then half powers of two up to 128.

    Later keys (j > i), visible in the prompt block only, have buckets of their own.
    """
    index = torch.arange(num_tokens, device=device)
    distance = index[:, None] - index[None, :]
    size = distance.abs()
    log_bucket = (torch.log2(size.clamp_min(_EXACT) / _EXACT) * 2).long() + _EXACT
    bucket = torch.where(size < _EXACT, size, log_bucket.clamp_max(NUM_DISTANCE_BUCKETS // 2 - 1))
    return bucket + (distance < 0) * (NUM_DISTANCE_BUCKETS // 2)
