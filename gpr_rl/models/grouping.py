"""Work per token type: tokens sorted by type once, padding dropped, then contiguous slices.

Dims: B sequences, T tokens, M real tokens of the batch (sorted by type), G groups (types), D width.
"""

from dataclasses import dataclass
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

    def pack(self, x: Float[Tensor, "B T W"]) -> Float[Tensor, "M W"]:
        """Return the real tokens, sorted by type."""
        return x.flatten(0, 1).index_select(0, self.rows)

    def unpack(self, x: Float[Tensor, "M W"]) -> Float[Tensor, "B T W"]:
        """Return tokens in sequence order, zeros at padding."""
        padded = x.new_zeros(len(self.slot), x.shape[-1]).index_copy(0, self.rows, x)
        return padded.unflatten(0, self.shape)

    def unpack_masked(self, x: Float[Tensor, "M W"]) -> Float[Tensor, "B T W"]:
        """Return tokens in sequence order, anything at padding, which nobody may read.

        One gather in both directions, several times faster than `unpack`. The gradient of what
        stands at padding is dropped.
        """
        return _Scatter.apply(x, self.rows, self.slot).unflatten(0, self.shape)


class _Scatter(torch.autograd.Function):
    """Rows moved by one gather; the gradient comes back by the inverse gather."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, slot: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return x.index_select(0, slot)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (rows,) = ctx.saved_tensors
        return grads[0].index_select(0, rows), None, None


class GroupedLayerNorm(nn.Module):
    """Layer norm with a gain and an offset of its own per token type (GPR 2.2).

    Args:
        dim: D.
        num_groups: NUM_TYPES, or 1 to share one pair among all types.
    """

    def __init__(self, dim: int, num_groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_groups, dim))
        self.bias = nn.Parameter(torch.zeros(num_groups, dim))

    def forward(self, x: Float[Tensor, "M D"], sizes: tuple[int, ...]) -> Float[Tensor, "M D"]:
        """Normalise packed tokens; `sizes` are the tokens per type."""
        dim = x.shape[-1:]
        if len(self.weight) == 1:
            return F.layer_norm(x, dim, self.weight[0], self.bias[0])
        groups = zip(x.split(sizes), self.weight.unbind(), self.bias.unbind(), strict=True)
        return torch.cat([F.layer_norm(part, dim, w, b) for part, w, b in groups])


class GroupedFFN(nn.Module):
    """Two-layer network with weights of its own per token type (GPR 2.2).

    Args:
        dim: D.
        hidden: Width of the hidden layer.
        num_groups: NUM_TYPES, or 1 to share one network among all types.
    """

    def __init__(self, dim: int, hidden: int, num_groups: int) -> None:
        super().__init__()
        self.weight_in = nn.Parameter(torch.empty(num_groups, hidden, dim))
        self.bias_in = nn.Parameter(torch.zeros(num_groups, hidden))
        self.weight_out = nn.Parameter(torch.empty(num_groups, dim, hidden))
        self.bias_out = nn.Parameter(torch.zeros(num_groups, dim))
        nn.init.normal_(self.weight_in, std=dim**-0.5)
        nn.init.normal_(self.weight_out, std=hidden**-0.5)

    def forward(self, x: Float[Tensor, "M D"], sizes: tuple[int, ...]) -> Float[Tensor, "M D"]:
        """Transform packed tokens; `sizes` are the tokens per type."""
        if len(self.weight_in) == 1:
            return self._group(x, 0)
        return torch.cat([self._group(part, g) for g, part in enumerate(x.split(sizes))])

    def _group(self, x: Tensor, group: int) -> Tensor:
        hidden = F.relu(F.linear(x, self.weight_in[group], self.bias_in[group]))
        return F.linear(hidden, self.weight_out[group], self.bias_out[group])
