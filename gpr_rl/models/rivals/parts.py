"""What several rivals share: checks of sizes, positions of items, losses and ranks.

Dims: B windows or requests, T tokens, P positions, R predictions, N ads, D width, L levels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpr_rl.checks import check_at_least
from gpr_rl.models.layers.transformer import TransformerBlock
from gpr_rl.models.retrieval import NextAdBatch
from gpr_rl.schema import Tokens, TokenType


@dataclass(frozen=True, kw_only=True)
class RivalConfig:
    """What every rival's configuration has; all integers are sizes.

    Raises:
        ValueError: An integer below 1, heads that do not divide the width, dropout outside [0, 1).
    """

    dim: int = 64
    """D, width of every embedding, as in `HHDConfig`."""
    num_heads: int = 4
    """Attention heads; divides `dim`; as in `HHDConfig`."""
    dropout: float = 0.0
    """Of embeddings, attention and residual branches."""

    def __post_init__(self) -> None:
        check_at_least(1, **{k: v for k, v in asdict(self).items() if isinstance(v, int)})
        self._check_heads()
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")

    def _check_heads(self) -> None:
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads must divide dim={self.dim}, got {self.num_heads}")


def transformer_blocks(config: Any, num_layers: int) -> nn.ModuleList:
    """Return causal blocks of a configuration's sizes."""
    dim, hidden = config.dim, config.ffn_multiple * config.dim
    blocks = (
        TransformerBlock(dim, config.num_heads, hidden, config.dropout) for _ in range(num_layers)
    )
    return nn.ModuleList(blocks)


def last_position(tokens: Tokens) -> Int[Tensor, "B 1"]:
    """Return the index of each row's last real token, the E token of the request."""
    return (tokens.kind != TokenType.PAD).sum(1, keepdim=True) - 1


def item_columns(kind: Int[Tensor, "B T"]) -> tuple[Int[Tensor, "B n"], Int[Tensor, "B T"]]:
    """Return token indices of each row's O and I tokens, and their number among tokens 0..t.

    Other tokens' indices follow; n is the largest number of items that a row has, at least 1.
    """
    is_item = (kind == TokenType.ORGANIC) | (kind == TokenType.ITEM)
    count = is_item.cumsum(1)
    most = max(1, int(count[:, -1].max()))
    return (~is_item).long().argsort(dim=1, stable=True)[:, :most], count


class AdScorer(nn.Module, ABC):
    """A rival with an embedding per ad: a score is its dot product with the request's state."""

    ads: Tensor

    @abstractmethod
    def states(
        self, tokens: Tokens, item: Int[Tensor, "B T"], position: Int[Tensor, "B P"]
    ) -> Float[Tensor, "B P D"]:
        """Return what is known before the E tokens `position`; `item`: see `NextAdBatch`."""

    def loss(self, batch: NextAdBatch) -> Float[Tensor, ""]:
        """Return the cross-entropy over all ads, 0 where none is valid; see `Retriever.loss`."""
        states = self.states(batch.tokens, batch.item, batch.position)
        logits = states[batch.valid] @ self.ads.T
        total = F.cross_entropy(logits, batch.ad_id[batch.valid], reduction="sum")
        return total / batch.valid.sum().clamp_min(1)

    @torch.no_grad()
    def rank(self, tokens: Tokens, item: Int[Tensor, "B T"], k: int) -> Int[Tensor, "B k"]:
        """Return the k ads that score highest; see `Retriever.rank`."""
        scores = self.states(tokens, item, last_position(tokens))[:, 0] @ self.ads.T
        best = scores.topk(min(k, scores.shape[1])).indices
        return F.pad(best, (0, k - best.shape[1]), value=-1)


def path_loss(
    batch: NextAdBatch,
    total_loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    max_rows: int,
    none: Tensor,
) -> Float[Tensor, ""]:
    """Return the mean of a loss over valid predictions, `max_rows` of them at a time.

    `total_loss` is the sum over predictions of row [R], position [R] and path [R, L]; `none` times
    0 is returned where none is valid. Where there are several parts, backward computes each again,
    so that it holds one part's intermediate results at a time.
    """
    row, column = batch.valid.nonzero(as_tuple=True)
    if not len(row):
        return none.sum() * 0.0
    position, codes = batch.position[row, column], batch.codes[row, column]

    def total(part: Tensor) -> Tensor:
        return total_loss(row[part], position[part], codes[part])

    # in order of length, so that a part is no longer than need be
    parts = position.argsort(stable=True).split(max_rows)
    if len(parts) == 1 or not torch.is_grad_enabled():
        losses = [total(part) for part in parts]
    else:
        losses = [checkpoint(total, part, use_reentrant=False) for part in parts]
    return torch.stack(losses).sum() / len(row)
