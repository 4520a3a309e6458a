"""The plain Transformer block of the rivals.

Dims: B sequences, T tokens, H heads, D width.
"""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


class TransformerBlock(nn.Module):
    """Pre-norm self-attention, then a two-layer ReLU network, each with a residual.

    Args:
        dim: D.
        num_heads: H, divides D.
        ffn_multiple: Hidden width of the network in units of D.
        dropout: Of attention weights, the hidden layer and both residual branches.
    """

    def __init__(self, dim: int, num_heads: int, ffn_multiple: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn_in = nn.Linear(dim, ffn_multiple * dim)
        self.ffn_out = nn.Linear(ffn_multiple * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "B T D"], visible: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Transform tokens.

        Args:
            x: Token states.
            visible: The tokens that all tokens of a row may see, at least one per row; None:
                every token sees itself and those before it.
        """
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if visible is None else visible[:, None, None],
            dropout_p=self.dropout.p if self.training else 0.0,
            is_causal=visible is None,
        )
        x = x + self.dropout(self.output(attended.transpose(1, 2).flatten(2)))
        hidden = self.dropout(F.relu(self.ffn_in(self.ffn_norm(x))))
        return x + self.dropout(self.ffn_out(hidden))
