"""Work per token type: tokens sorted by type once, padding dropped, then contiguous slices.

Dims: B sequences, T tokens, M real tokens of the batch (sorted by type), G groups (types), D width,
H attention heads, N vectors of width D per token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gpr_rl.schema import TokenType

NUM_TYPES = len(TokenType) - 1  # padding has no parameters


@dataclass(frozen=True)
class TokenLayout:
    """Where the M real tokens of a batch sit: padded [B, T] or packed [M], sorted by type."""

    shape: tuple[int, int]
    """B and T."""
    rows: Tensor
    """int64 [M], index into the flattened [B * T] of each packed token."""
    slot: Tensor
    """int64 [B * T], packed index of each position; 0 at padding."""
    sizes: tuple[int, ...]
    """Tokens of type USER, ORGANIC, ENVIRONMENT, ITEM."""

    @classmethod
    def of(cls, kind: Int[Tensor, "B T"]) -> "TokenLayout":
        """Sort the tokens of a batch by type; within a type the order stays."""
        flat = kind.flatten()
        counts = torch.bincount(flat, minlength=NUM_TYPES + 1).tolist()
        rows = flat.argsort(stable=True)[counts[0] :]
        slot = torch.zeros_like(flat)
        slot[rows] = torch.arange(len(rows), device=flat.device)
        return cls((kind.shape[0], kind.shape[1]), rows, slot, tuple(counts[1:]))

    _indices: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def unpack(self, x: Float[Tensor, "M W"]) -> Float[Tensor, "B T W"]:
        """Return tokens in sequence order, zeros at padding."""
        padded = x.new_zeros(len(self.slot), x.shape[-1]).index_copy(0, self.rows, x)
        return padded.unflatten(0, self.shape)

    def unpack_heads(
        self, x: Float[Tensor, "M W"], num_vectors: int, num_heads: int
    ) -> Float[Tensor, "N B H T d"]:
        """Return N vectors per token (W = N H d), head by head in sequence order.

        One gather in both directions puts every head's matrix in one piece, so that no product
        copies it again. What stands at padding is anything; its gradient is dropped.
        """
        there, back = self._index(num_vectors, num_heads)
        width = x.shape[1] // (num_vectors * num_heads)
        found = _Move.apply(x.reshape(len(back), width), there, back)
        batch, length = self.shape
        return found.view(num_vectors, batch, num_heads, length, width)

    def pack_heads(self, x: Float[Tensor, "B H T d"]) -> Float[Tensor, "M D"]:
        """Return the real tokens, sorted by type, their heads side by side."""
        there, back = self._index(1, x.shape[1])
        found = _Move.apply(x.flatten(0, 2), back, there)
        return found.view(len(self.rows), x.shape[1] * x.shape[3])

    def _index(self, num_vectors: int, num_heads: int) -> tuple[Tensor, Tensor]:
        """Return the packed (M, N, H) row of every padded (N, B, H, T) one, and the reverse."""
        if (num_vectors, num_heads) not in self._indices:
            batch, length = self.shape
            device = self.rows.device
            vector = torch.arange(num_vectors, device=device)
            head = torch.arange(num_heads, device=device)
            each = vector[:, None] * num_heads + head  # [N, H]
            slot = self.slot.view(batch, 1, length) * (num_vectors * num_heads)
            there = slot + each[:, None, :, None]  # [N, B, H, T]
            owner, index = self.rows // length, self.rows % length
            first = vector[:, None] * batch + owner[:, None, None]  # [M, N, 1]
            back = (first * num_heads + head) * length + index[:, None, None]  # [M, N, H]
            self._indices[num_vectors, num_heads] = there.flatten(), back.flatten()
        return self._indices[num_vectors, num_heads]


class _Move(torch.autograd.Function):
    """Rows moved by one gather; the gradient of rows that are not wanted, which are padding, is 0.

    `inverse` says where each row of x went, and anything where it is not wanted.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, wanted: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(wanted, inverse)
        return x.index_select(0, wanted)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        wanted, inverse = ctx.saved_tensors
        if len(wanted) >= len(inverse):  # all rows were wanted
            return grads[0].index_select(0, inverse), None, None
        spread = grads[0].new_zeros(len(inverse), grads[0].shape[1])
        return spread.index_copy(0, wanted, grads[0]), None, None


class GroupedLayerNorm(nn.Module):
    """Layer norm with a gain and an offset of its own per token type (GPR 2.2), or of all types."""

    def __init__(self, dim: int, num_groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_groups, dim))
        self.bias = nn.Parameter(torch.zeros(num_groups, dim))

    def forward(self, x: Float[Tensor, "M D"], sizes: tuple[int, ...]) -> Float[Tensor, "M D"]:
        """Normalise packed tokens; `sizes` are the tokens per type."""
        parts = self.parts(x, sizes)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def parts(self, x: Float[Tensor, "M D"], sizes: tuple[int, ...]) -> list[Tensor]:
        """Return `forward` as one piece per type, or as one where all share the pair."""
        pieces = [x] if len(self.weight) == 1 else x.split(sizes)
        pairs = zip(pieces, self.weight.unbind(), self.bias.unbind(), strict=True)
        return [F.layer_norm(piece, x.shape[-1:], w, b) for piece, w, b in pairs]


class GroupedFFN(nn.Module):
    """Two-layer network with weights of its own per token type (GPR 2.2), or of all types."""

    def __init__(self, dim: int, hidden: int, num_groups: int) -> None:
        super().__init__()
        self.weight_in = nn.Parameter(torch.empty(num_groups, hidden, dim))
        self.bias_in = nn.Parameter(torch.zeros(num_groups, hidden))
        self.weight_out = nn.Parameter(torch.empty(num_groups, dim, hidden))
        self.bias_out = nn.Parameter(torch.zeros(num_groups, dim))
        nn.init.normal_(self.weight_in, std=dim**-0.5)
        nn.init.normal_(self.weight_out, std=hidden**-0.5)

    def forward(
        self, x: Float[Tensor, "M D"] | Sequence[Tensor], sizes: tuple[int, ...]
    ) -> Float[Tensor, "M D"]:
        """Transform packed tokens, one piece or one per type; `sizes` are the tokens per type."""
        parts = [x] if isinstance(x, Tensor) else list(x)
        if len(self.weight_in) == 1:
            return self._group(parts[0] if len(parts) == 1 else torch.cat(parts), 0)
        pieces = parts[0].split(sizes) if len(parts) == 1 else parts
        return torch.cat([self._group(piece, group) for group, piece in enumerate(pieces)])

    def _group(self, x: Tensor, group: int) -> Tensor:
        hidden = F.relu(F.linear(x, self.weight_in[group], self.bias_in[group]))
        return F.linear(hidden, self.weight_out[group], self.bias_out[group])
