"""Transformer decoder over semantic-ID paths; the PTD and the HTE are built on it.

The token sequence of one candidate is [shared tokens, z_1, z_2, ...]. The shared tokens (thinking
tokens and the start token) are computed once per state and serve all candidates.

Dims: B sequences, S states per sequence (1 when a request is served), T tokens of the sequence,
K candidates per state, n codes per candidate, m shared tokens, W beams, D width, H heads, N layers.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from tensordict import TensorClass
from torch import Tensor, nn

from gpr_rl.models.config import HHDConfig


class DecoderState(NamedTuple):
    """What all candidates of a state share; computed once."""

    memory: Tensor  # [B, N, 2, H, T, D/H], keys and values of h per layer
    shared: Tensor  # [B, S, N, 2, H, m, D/H], keys and values of the shared tokens per layer
    start: Tensor  # [B, S, D], output at the start token
    visible: Tensor  # bool [B, S, T], which h a state may see
    trunk: Tensor | None = None  # [B, S, L, D], what LazyAR knows of each level before any code
    thought: Tensor | None = None  # [B, S, D], sum of thinking outputs, where a token is refined


Refine = Callable[[Float[Tensor, "B S D"]], Float[Tensor, "B S D"]]
"""Summed outputs of a state's thinking tokens to the refining token."""


class Context(TensorClass):
    """What is known of B requests before the first code, batch [B]; all candidates share it.

    The fields from `memory` to `thought` are the PTD's `DecoderState`. External knowledge stands in
    front of h as one more slot that every state sees; T counts it, and positions are shifted by it.
    """

    h: Tensor  # [B, T, D] intent embeddings, zero at padding
    key_mask: Tensor  # bool [B, T], True at real tokens
    position: Tensor  # int64 [B, S], token index of each state
    memory: Tensor
    shared: Tensor
    start: Tensor
    visible: Tensor
    trunk: Tensor | None = None
    thought: Tensor | None = None
    router_logits: Tensor | None = None  # [B, T, R], of the recursions, without knowledge's slot

    def state(self) -> DecoderState:
        """Return the PTD's part."""
        return DecoderState(*(getattr(self, name) for name in DecoderState._fields))


class DecoderBlock(nn.Module):
    """Pre-norm self-attention, cross-attention and feed-forward network, in two halves.

    Between `project` and `finish` the caller attends.
    """

    def __init__(self, config: HHDConfig) -> None:
        super().__init__()
        dim, self.num_heads = config.dim, config.num_heads
        self.self_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.self_output = nn.Linear(dim, dim)
        self.cross_norm = nn.LayerNorm(dim)
        self.cross_query = nn.Linear(dim, dim)
        self.cross_output = nn.Linear(dim, dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn_in = nn.Linear(dim, config.ffn_dim)
        self.ffn_out = nn.Linear(config.ffn_dim, dim)

    def project(self, x: Tensor) -> Tensor:
        """Return query, key and value: [..., D] -> [..., 3, H, D/H]."""
        return self.qkv(self.self_norm(x)).unflatten(-1, (3, self.num_heads, -1))

    def finish(self, x: Tensor, attended: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """Add what self-attention found [B, Q, D], then cross-attend and transform.

        `memory` is [B, 2, H, T, D/H], `mask` bool [B, 1, 1 or Q, T].
        """
        x = x + self.self_output(attended)
        query = self.cross_query(self.cross_norm(x)).unflatten(-1, (self.num_heads, -1))
        key, value = memory.unbind(1)
        found = F.scaled_dot_product_attention(query.transpose(1, 2), key, value, attn_mask=mask)
        x = x + self.cross_output(found.transpose(1, 2).flatten(2))
        return x + self.ffn_out(F.relu(self.ffn_in(self.ffn_norm(x))))


class CodeDecoder(nn.Module):
    """Shared tokens, code embeddings of its own per level, and decoder blocks.

    The state's own intent embedding h (that of its E token) is added, through a linear map, to
    the learned shared tokens. Differs from the paper, whose queries are the same for every state:
    a single layer of them could not ask about the request at hand. The last of the `num_shared`
    tokens, m >= 1, is the start token; `num_levels` codes of a path are read.
    """

    def __init__(
        self, config: HHDConfig, num_layers: int, num_shared: int, num_levels: int, num_codes: int
    ) -> None:
        super().__init__()
        dim = config.dim
        self.num_heads, self.num_codes = config.num_heads, num_codes
        self.shared = nn.Parameter(torch.randn(num_shared, dim) * dim**-0.5)
        self.state = nn.Linear(dim, dim, bias=False)
        self.codes = nn.Parameter(torch.randn(num_levels * num_codes, dim) * dim**-0.5)
        self.memory = nn.Linear(dim, num_layers * 2 * dim)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)

    def begin(
        self, h: Float[Tensor, "B T D"], position: Int[Tensor, "B S"], refine: Refine | None = None
    ) -> DecoderState:
        """Return what all candidates share, for the states at `position`, which see h up to there.

        `refine` makes one more shared token, before the start token, from the sum of those before
        it.
        """
        index = torch.arange(h.shape[1], device=h.device)
        visible = index <= position[..., None]
        parts = self.memory(h).unflatten(-1, (-1, 2, self.num_heads, h.shape[2] // self.num_heads))
        memory = parts.permute(0, 2, 3, 4, 1, 5).contiguous()
        own = self.state(h.gather(1, position[..., None].expand(-1, -1, h.shape[2])))
        x = own[:, :, None] + self.shared  # [B, S, m, D]
        return self._begin(x, own, memory, visible, refine)

    def _begin(
        self, x: Tensor, own: Tensor, memory: Tensor, visible: Tensor, refine: Refine | None
    ) -> DecoderState:
        """Return `begin` of shared tokens `x`, whose states are `own` [B, S, D]."""
        blocks = self.blocks
        if refine is None:
            x, shared = run_shared(blocks, x, None, memory, visible)
            return DecoderState(memory, shared, self.norm(x[:, :, -1]), visible)
        thinking, shared = run_shared(blocks, x[:, :, :-1], None, memory, visible)
        thought = self.norm(thinking).sum(2)
        x = torch.stack([refine(thought), x[:, :, -1]], dim=2)
        x, shared = run_shared(blocks, x, shared, memory, visible)
        start = self.norm(x[:, :, -1])
        return DecoderState(memory, shared, start, visible, thought=thought)

    def embed(self, codes: Int[Tensor, "*batch n"], first_level: int = 0) -> Tensor:
        """Return embeddings of codes at levels first_level, first_level + 1, ... (0-based)."""
        level = torch.arange(first_level, first_level + codes.shape[-1], device=codes.device)
        return F.embedding(codes + level * self.num_codes, self.codes)

    def candidates(
        self, state: DecoderState, codes: Int[Tensor, "B S K n"]
    ) -> Float[Tensor, "B S K n D"]:
        """Return outputs after each code of known paths, all levels in one pass."""
        return self.extend(state, None, codes, 0)[0]

    def extend(
        self,
        state: DecoderState,
        past: Float[Tensor, "B S K N 2 p D"] | None,
        codes: Int[Tensor, "B S K n"],
        level: int,
    ) -> tuple[Float[Tensor, "B S K n D"], Tensor]:
        """Return outputs after each further code, and keys and values of all codes so far.

        `past` are keys and values of the p codes before, in this order of candidates, None at
        first; `codes` follow them, at 0-based levels `level` = p, p + 1, ...
        """
        x = self._inputs(state, codes, level).flatten(1, 3)  # [B, S * K * n, D]
        mask = cross_mask(state.visible, codes.shape[2] * codes.shape[3])
        kept = []
        for layer, block in enumerate(cast(Sequence[DecoderBlock], self.blocks)):
            qkv = block.project(x).unflatten(1, codes.shape[1:])  # [B, S, K, n, 3, H, D/H]
            query, own = qkv[..., 0, :, :], qkv[..., 1:, :, :].movedim(4, 3).flatten(-2)
            if past is not None:
                own = torch.cat([past[:, :, :, layer], own], dim=4)
            kept.append(own)
            attended = _attend_path(query, state.shared[:, :, layer], own)
            x = block.finish(x, attended.reshape(x.shape), state.memory[:, layer], mask)
        stacked = kept[0].unsqueeze(3) if len(kept) == 1 else torch.stack(kept, dim=3)
        return self.norm(x).view(*codes.shape, -1), stacked

    def _inputs(self, state: DecoderState, codes: Tensor, level: int) -> Tensor:
        """Return what enters the blocks at each code [B, S, K, n, D]."""
        return self.embed(codes, level)


def run_shared(
    blocks: nn.ModuleList,
    x: Tensor,
    past: Tensor | None,
    memory: Tensor,
    visible: Tensor,
    seen: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return outputs [B, S, m, D] of shared tokens, and keys and values of all of them so far.

    `past` are those [B, S, N, 2, H, p, D/H] of tokens before, if any; `seen` bool [m, m] says who
    attends to whom where there are none; by default causally, and to those before.
    """
    batch, num_states, num_new, _ = x.shape
    mask = cross_mask(visible, num_new)
    x, shared = x.flatten(1, 2), []
    for layer, block in enumerate(cast(Sequence[DecoderBlock], blocks)):
        qkv = block.project(x).unflatten(1, (num_states, -1)).flatten(0, 1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # [B * S, H, m, D/H]
        if past is None:
            attended = F.scaled_dot_product_attention(
                query, key, value, attn_mask=seen, is_causal=seen is None
            )
        else:
            before = past[:, :, layer].flatten(0, 1).unbind(1)
            key, value = (torch.cat(p, dim=2) for p in zip(before, (key, value), strict=True))
            ones = torch.ones(num_new, key.shape[2], dtype=torch.bool, device=x.device)
            causal = ones.tril(key.shape[2] - num_new)
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=causal)
        attended = attended.transpose(1, 2).reshape(x.shape)
        x = block.finish(x, attended, memory[:, layer], mask)
        shared.append(torch.stack([key, value], dim=1).unflatten(0, (batch, -1)))
    return x.unflatten(1, (num_states, -1)), torch.stack(shared, dim=2)


def cross_mask(visible: Bool[Tensor, "B S T"], queries: int) -> Tensor:
    """Return bool [B, 1, 1, T] for one state per sequence, else [B, 1, S * queries, T]."""
    if visible.shape[1] == 1:
        return visible[:, None]
    return visible.repeat_interleave(queries, dim=1)[:, None]


def _attend_path(query: Tensor, shared: Tensor, own: Tensor) -> Tensor:
    """Attend from the last n codes of each candidate to the shared tokens and its own codes.

    Query and result are [B, S, K, n, H, D/H], `shared` is [B, S, 2, H, m, D/H], `own`, of p codes
    before and the n themselves, which attend causally, [B, S, K, 2, p + n, D].
    """
    # products over a candidate's few codes cost less than one masked attention in which every
    # candidate meets every other's keys, and grow linearly with K
    num_shared, (num_new, heads, width) = shared.shape[4], query.shape[3:]
    query = query * width**-0.5
    shared_key, shared_value = shared.unbind(2)
    own_key, own_value = own.unflatten(-1, (heads, width)).unbind(3)  # [B, S, K, p + n, H, D/H]
    by_head = query.flatten(2, 3).transpose(2, 3)  # [B, S, H, K * n, D/H]
    shared_score = (by_head @ shared_key.mT).unflatten(3, query.shape[2:4])
    own_score = (query[:, :, :, :, None] * own_key[:, :, :, None]).sum(-1)
    num_own = own_score.shape[4]
    if num_new > 1:
        index = torch.arange(num_own, device=own.device)
        later = index > index[num_own - num_new :, None]  # [n, p + n]
        own_score = own_score.masked_fill(later[..., None], -torch.inf)
    score = torch.cat([shared_score.permute(0, 1, 3, 4, 5, 2), own_score], dim=4)
    to_shared, to_own = score.softmax(4).split([num_shared, num_own], dim=4)
    weight = to_shared.permute(0, 1, 5, 2, 3, 4).flatten(3, 4)  # [B, S, H, K * n, m]
    from_shared = (weight @ shared_value).transpose(2, 3).unflatten(2, query.shape[2:4])
    return (to_own[..., None] * own_value[:, :, :, None]).sum(4) + from_shared
