"""The same ads for everybody: those most often next in the training windows.

Dims: B windows or requests, T tokens, N ads.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gpr_rl.models.retrieval import NextAdBatch
from gpr_rl.schema import Tokens


class Popularity(nn.Module):
    """Ranks ads by how often they are training targets, ties to the lower id. No parameters.

    `count` int64 [N] are the targets seen so far; zeros to begin with `fit`.
    """

    count: Tensor

    def __init__(self, count: Int[Tensor, " N"]) -> None:
        super().__init__()
        self.register_buffer("count", count.clone())

    def fit(self, batches: Iterable[NextAdBatch]) -> "Popularity":
        """Count the valid targets of further batches; returns itself."""
        for batch in batches:
            self.count += torch.bincount(batch.ad_id[batch.valid], minlength=len(self.count))
        return self

    def loss(self, batch: NextAdBatch) -> Float[Tensor, ""]:
        """Return the mean -log share of the target ads, every count raised by 1; no gradient."""
        share = (self.count + 1) / (self.count + 1).sum()
        return -share.log()[batch.ad_id[batch.valid]].sum() / batch.valid.sum().clamp_min(1)

    def rank(self, tokens: Tokens, item: Int[Tensor, "B T"], k: int) -> Int[Tensor, "B k"]:
        """Return the k most frequent ads, the same for each request; see `Retriever.rank`."""
        best = self.count.argsort(descending=True, stable=True)[:k]
        return F.pad(best, (0, k - len(best)), value=-1).repeat(len(item), 1)
