"""The plain Transformer block of the rivals and of the refiner.

Dims: B sequences, T tokens, H heads, D width.
"""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


class TransformerBlock(nn.Module):
    """Pre-norm self-attention, then a two-layer network, each with a residual.

    Dropout is of attention weights, the hidden layer and both residual branches.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float = 0.0,
        activation: Callable[[Tensor], Tensor] = F.relu,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads, self.activation, self.causal = num_heads, activation, causal
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn_in = nn.Linear(dim, ffn_dim)
        self.ffn_out = nn.Linear(ffn_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "B T D"], visible: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Transform tokens; `visible` are those that all of a row may see, at least one per row."""
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if visible is None else visible[:, None, None],
            dropout_p=self.dropout.p if self.training else 0.0,
            is_causal=self.causal and visible is None,
        )
        x = x + self.dropout(self.output(attended.transpose(1, 2).flatten(2)))
        hidden = self.dropout(self.activation(self.ffn_in(self.ffn_norm(x))))
        return x + self.dropout(self.ffn_out(hidden))
