"""Output over whole ads: one embedding each, trained by cross-entropy over all of them.

Dims: B windows or requests, P supervised positions, N ads, D width.
"""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from gpr_rl.models.retrieval import NextAdBatch


def full_softmax_loss(
    states: Float[Tensor, "B P D"], ads: Float[Tensor, "N D"], batch: NextAdBatch
) -> Float[Tensor, ""]:
    """Return the mean over valid positions of -log softmax(ads state)[ad]; 0 where none is."""
    logits = states[batch.valid] @ ads.T
    total = F.cross_entropy(logits, batch.ad_id[batch.valid], reduction="sum")
    return total / batch.valid.sum().clamp_min(1)


def top_ads(scores: Float[Tensor, "B N"], k: int) -> Int[Tensor, "B k"]:
    """Return the k ads with the highest scores, best first, then -1 where N is below k."""
    best = scores.topk(min(k, scores.shape[1])).indices
    return F.pad(best, (0, k - best.shape[1]), value=-1)
