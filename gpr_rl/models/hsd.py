"""Heterogeneous Sequence-wise Decoder: tokens in, intent embeddings out (GPR 2.2).

Dims: B sequences, T tokens, M real tokens of the batch sorted by type, D width, H attention heads.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gpr_rl.models.checks import check_some, check_tokens
from gpr_rl.models.config import HHDConfig
from gpr_rl.models.layers.attention import Biases, Pairs, attend
from gpr_rl.models.layers.grouping import NUM_TYPES, GroupedFFN, GroupedLayerNorm, TokenLayout
from gpr_rl.models.masks import NUM_DISTANCE_BUCKETS, NUM_TIME_BUCKETS, token_time
from gpr_rl.models.mor import RecursionRouter, apply_blocks, recurse, split_blocks
from gpr_rl.schema import NUM_TIME_GAPS, Action, InputSpec, Tokens, TokenType


class TokenEmbedding(nn.Module):
    """Sum of what a token carries, from one table with a range per vocabulary (GPR 2.1).

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

    def padded(self, tokens: Tokens) -> Float[Tensor, "B T D"]:
        """Return the embeddings of checked tokens in sequence order, zero at padding."""
        check_some(tokens)
        check_tokens(tokens, self.spec, limited=True)
        layout = TokenLayout.of(tokens.kind)
        return layout.unpack(self(tokens, layout))

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
        self.num_heads, self.rotary = config.num_heads, config.attention_bias == "rotary"
        norm_groups = NUM_TYPES if config.token_aware_norm else 1
        ffn_groups = NUM_TYPES if config.token_aware_ffn else 1
        self.attention_norm = GroupedLayerNorm(dim, norm_groups)
        self.uvqk = nn.Linear(dim, 4 * dim)
        self.distance_bias = self.time_bias = None
        if config.attention_bias == "distance":
            self.distance_bias = nn.Parameter(torch.zeros(NUM_DISTANCE_BUCKETS, config.num_heads))
        if config.relative_time:
            self.time_bias = nn.Parameter(torch.zeros(NUM_TIME_BUCKETS, config.num_heads))
        self.output_norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, dim)
        self.ffn_norm = GroupedLayerNorm(dim, norm_groups)
        self.ffn = GroupedFFN(dim, config.ffn_dim, ffn_groups)

    def forward(
        self, x: Float[Tensor, "M D"], layout: TokenLayout, pairs: Pairs
    ) -> Float[Tensor, "M D"]:
        """Transform packed tokens that sit as in `layout` and attend as in `pairs`."""
        dim = x.shape[-1]
        normed, parts = self.attention_norm(x, layout.sizes), [dim, 3 * dim]
        weights = zip(self.uvqk.weight.split(parts), self.uvqk.bias.split(parts), strict=True)
        gate, vqk = (F.silu(F.linear(normed, w, b)) for w, b in weights)  # apart: U stays packed
        biases = Biases(self.distance_bias, self.time_bias)
        heads = layout.unpack_heads(vqk, 3, self.num_heads)
        attended = layout.pack_heads(attend(heads, pairs, biases, rotary=self.rotary))
        x = x + self.output(self.output_norm(attended) * gate)
        return x + self.ffn(self.ffn_norm.parts(x, layout.sizes), layout.sizes)


class HSD(nn.Module):
    """The sequence model: embeds a token sequence and returns intent embeddings h.

    With `num_recursions` the blocks in the middle are applied as each token's router says.
    """

    def __init__(self, config: HHDConfig, spec: InputSpec) -> None:
        super().__init__()
        self.config = config
        self.embedding = TokenEmbedding(config.dim, spec)
        self.blocks = nn.ModuleList(HSDBlock(config) for _ in range(config.num_hsd_layers))
        self.norm = nn.LayerNorm(config.dim)
        self.router: RecursionRouter | None = None
        if config.num_recursions:
            self.router = RecursionRouter(config.dim, config.num_recursions)

    def forward(
        self, tokens: Tokens
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B T R"] | None]:
        """Return h, and the router's logits of every token where there is a router.

        h[:, i] depends on what token i may see and nothing else; it is zero at padding.
        """
        check_tokens(tokens, self.embedding.spec)
        layout = TokenLayout.of(tokens.kind)
        return self.transform(self.embedding(tokens, layout), tokens, layout)

    def transform(
        self, x: Float[Tensor, "M D"], tokens: Tokens, layout: TokenLayout
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B T R"] | None]:
        """Return `forward` of tokens whose packed embeddings are `x`."""
        pairs = Pairs(
            kind=tokens.kind,
            prompt_length=tokens.prompt_length,
            dtype=x.dtype,
            hybrid=self.config.hybrid_attention,
            chunk=self.config.attention_chunk,
            time=token_time(tokens.time_gap) if self.config.relative_time else None,
        )
        blocks, routing = list(self.blocks), None
        if self.router is not None:
            first, shared, last = split_blocks(len(blocks))
            x = apply_blocks(blocks[first], x, layout, pairs)
            logits = self.router(x)
            x = recurse(x, logits, blocks[shared], layout, pairs)
            blocks, routing = blocks[last], layout.unpack(logits)
        x = apply_blocks(blocks, x, layout, pairs)
        return layout.unpack(self.norm(x)), routing
