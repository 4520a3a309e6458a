"""Heterogeneous Sequence-wise Decoder: tokens in, intent embeddings out (GPR 2.2).

Dims: B sequences, T tokens, M real tokens of the batch sorted by type, L levels, V codes, D width,
H attention heads.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gpr_rl.models.config import HHDConfig
from gpr_rl.models.grouping import NUM_TYPES, GroupedFFN, GroupedLayerNorm, TokenLayout
from gpr_rl.models.masks import NUM_DISTANCE_BUCKETS, distance_bucket, hybrid_mask
from gpr_rl.schema import NUM_TIME_GAPS, Action, InputSpec, Tokens, TokenType


class TokenEmbedding(nn.Module):
    """Sum of what a token carries, from one table with a range per vocabulary (METHODS 1).

    USER: attributes, and the past preference as a preference-weighted sum of code embeddings;
    ORGANIC and ITEM: L codes and the action; ENVIRONMENT: context attributes; all of them: the
    time since the token before, and the token type.
    """

    start: Tensor

    def __init__(self, dim: int, spec: InputSpec) -> None:
        super().__init__()
        self.spec = spec
        self.num_item_codes = spec.num_levels * spec.num_codes
        vocabularies = [spec.num_codes] * spec.num_levels
        vocabularies += [len(Action), NUM_TIME_GAPS, len(TokenType)]
        vocabularies += [*spec.context_cardinalities, *spec.user_cardinalities]
        self.table = nn.Parameter(torch.randn(sum(vocabularies), dim) * dim**-0.5)
        start = torch.tensor([0, *vocabularies]).cumsum(0)[:-1]
        self.register_buffer("start", start, persistent=False)

    def forward(self, tokens: Tokens, layout: TokenLayout) -> Float[Tensor, "M D"]:
        """Return packed token embeddings."""
        levels, num_context = self.spec.num_levels, len(self.spec.context_cardinalities)
        item, common, context, user = self.start.split(
            [levels + 1, 2, num_context, len(self.spec.user_cardinalities)]
        )
        always = torch.stack([tokens.time_gap, tokens.kind], dim=-1) + common
        content = torch.cat([tokens.codes, tokens.action[..., None]], dim=-1) + item
        item_ids = torch.cat([content, always], dim=-1).flatten(0, 1)
        context_ids = torch.cat([tokens.context + context, always], dim=-1).flatten(0, 1)
        user_rows, organic, environment, items = layout.rows.split(layout.sizes)
        owner = user_rows // layout.shape[1]
        user_ids = torch.cat([(tokens.user + user)[owner], always.flatten(0, 1)[user_rows]], dim=-1)
        preference = tokens.preference.flatten(1).to(self.table.dtype)
        liked = preference @ self.table[: self.num_item_codes]
        return torch.cat(
            [
                self._sum(user_ids) + liked[owner],
                self._sum(item_ids[organic]),
                self._sum(context_ids[environment]),
                self._sum(item_ids[items]),
            ]
        )

    def _sum(self, ids: Tensor) -> Tensor:
        return F.embedding_bag(ids, self.table, mode="sum")


class HSDBlock(nn.Module):
    """HSTU-like block: gated softmax attention (GPR Eq. 1), then a feed-forward network.

    [U, V, Q, K] = split(SiLU(Linear(norm(X)))); Y = softmax(Q K^T / sqrt(d) + bias + M) V;
    X + Linear(norm(Y) * U); X + FFN(norm(X)). SiLU, the norm on Y and the gate follow HSTU;
    both block norms and the FFN are per token type.
    """

    def __init__(self, config: HHDConfig) -> None:
        super().__init__()
        dim = config.dim
        self.num_heads = config.num_heads
        norm_groups = NUM_TYPES if config.token_aware_norm else 1
        ffn_groups = NUM_TYPES if config.token_aware_ffn else 1
        self.attention_norm = GroupedLayerNorm(dim, norm_groups)
        self.uvqk = nn.Linear(dim, 4 * dim)
        self.distance_bias = nn.Parameter(torch.zeros(NUM_DISTANCE_BUCKETS, config.num_heads))
        self.output_norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, dim)
        self.ffn_norm = GroupedLayerNorm(dim, norm_groups)
        self.ffn = GroupedFFN(dim, config.ffn_multiple * dim, ffn_groups)

    def forward(
        self, x: Float[Tensor, "M D"], layout: TokenLayout, mask: Tensor, bucket: Tensor
    ) -> Float[Tensor, "M D"]:
        """Transform packed tokens.

        Args:
            x: Packed token states.
            layout: Where they sit.
            mask: [B, 1, T, T], 0 where attention is allowed, a very negative number elsewhere.
            bucket: int64 [T, T], `distance_bucket`.
        """
        dim = x.shape[-1]
        gated = F.silu(self.uvqk(self.attention_norm(x, layout.sizes)))
        gate, vqk = gated.split([dim, 3 * dim], dim=-1)
        attended = layout.pack(self._attend(layout.unpack_masked(vqk), mask, bucket))
        x = x + self.output(self.output_norm(attended) * gate)
        return x + self.ffn(self.ffn_norm(x, layout.sizes), layout.sizes)

    def _attend(self, vqk: Tensor, mask: Tensor, bucket: Tensor) -> Tensor:
        """Return softmax attention [B, T, D] of the padded [V, Q, K] [B, T, 3 D].

        Plain matrix products: the bias is learned, and for a mask that needs a gradient torch's
        fused kernel falls back to the same products with more copies.
        """
        value, query, key = vqk.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        score = (query * query.shape[-1] ** -0.5) @ key.mT  # [B, H, T, T]
        bias = F.embedding(bucket, self.distance_bias).permute(2, 0, 1)
        attention = score.add_(bias).add_(mask).softmax(-1)
        return (attention @ value).transpose(1, 2).flatten(2)


class HSD(nn.Module):
    """The sequence model: embeds a token sequence and returns intent embeddings h."""

    def __init__(self, config: HHDConfig, spec: InputSpec) -> None:
        super().__init__()
        self.config = config
        self.embedding = TokenEmbedding(config.dim, spec)
        self.blocks = nn.ModuleList(HSDBlock(config) for _ in range(config.num_hsd_layers))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, tokens: Tokens) -> Float[Tensor, "B T D"]:
        """Return h, zero at padding. h[:, i] depends on what token i may see and nothing else."""
        layout = TokenLayout.of(tokens.kind)
        return self.transform(self.embedding(tokens, layout), tokens, layout)

    def transform(
        self, x: Float[Tensor, "M D"], tokens: Tokens, layout: TokenLayout
    ) -> Float[Tensor, "B T D"]:
        """Return h of tokens whose packed embeddings are `x`."""
        visible = hybrid_mask(
            tokens.kind, tokens.prompt_length, hybrid=self.config.hybrid_attention
        )[:, None]
        mask = x.new_zeros(visible.shape).masked_fill(~visible, torch.finfo(x.dtype).min)
        bucket = distance_bucket(tokens.kind.shape[1], x.device)
        for block in self.blocks:
            x = block(x, layout, mask, bucket)
        return layout.unpack(self.norm(x))
