"""Transformer decoder over semantic-ID paths; the PTD and the HTE are built on it.

The token sequence of one candidate is [shared tokens, z_1, z_2, ...]. The shared tokens (thinking
tokens and the start token) do not depend on the candidate, so they are computed once per state and
their keys and values serve all candidates.

Dims: B sequences, S states per sequence (1 when a request is served), T tokens of the sequence,
K candidates per state, n codes per candidate, m shared tokens, W beams, D width, H heads, N layers.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from tensordict import tensorclass
from torch import Tensor, nn

from gpr_rl.models.config import HHDConfig
from gpr_rl.models.masks import candidate_mask


class DecoderState(NamedTuple):
    """What all candidates of a state share; computed once."""

    memory: Tensor  # [B, N, 2, H, T, D/H], keys and values of h per layer
    shared: Tensor  # [B, S, N, 2, H, m, D/H], keys and values of the shared tokens per layer
    start: Tensor  # [B, S, D], output at the start token
    visible: Tensor  # bool [B, S, T], which h a state may see


@tensorclass
class Context:
    """What is known of B requests before the first code, batch [B]; all candidates share it.

    The last four fields are the PTD's `DecoderState`.
    """

    h: Tensor  # [B, T, D] intent embeddings, zero at padding
    key_mask: Tensor  # bool [B, T], True at real tokens
    position: Tensor  # int64 [B, S], token index of each state
    memory: Tensor
    shared: Tensor
    start: Tensor
    visible: Tensor

    def state(self) -> DecoderState:
        """Return the PTD's part."""
        return DecoderState(self.memory, self.shared, self.start, self.visible)


class DecoderBlock(nn.Module):
    """Pre-norm self-attention, cross-attention and feed-forward network, in two halves.

    Between `project` and `finish` the caller attends, because shared tokens, known paths and single
    beam steps each have their own cheapest form of the same self-attention.
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
        self.ffn_in = nn.Linear(dim, config.ffn_multiple * dim)
        self.ffn_out = nn.Linear(config.ffn_multiple * dim, dim)

    def project(self, x: Tensor) -> Tensor:
        """Return query, key and value: [..., D] -> [..., 3, H, D/H]."""
        return self.qkv(self.self_norm(x)).unflatten(-1, (3, self.num_heads, -1))

    def finish(self, x: Tensor, attended: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """Add what self-attention found, then cross-attend and transform.

        Args:
            x: [B, Q, D], all tokens of a sequence's states and candidates.
            attended: [B, Q, D].
            memory: [B, 2, H, T, D/H].
            mask: bool [B, 1, 1 or Q, T].
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
    a single layer of them could not ask about the request at hand.

    Args:
        config: Sizes.
        num_layers: N.
        num_shared: m, at least 1; the last one is the start token.
        num_levels: How many of a path's codes are read.
        num_codes: V.
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

    def begin(self, h: Float[Tensor, "B T D"], position: Int[Tensor, "B S"]) -> DecoderState:
        """Return what all candidates share, for the states at `position` of each sequence."""
        (batch, num_tokens, dim), num_states = h.shape, position.shape[1]
        index = torch.arange(num_tokens, device=h.device)
        visible = index <= position[..., None]
        parts = self.memory(h).unflatten(-1, (len(self.blocks), 2, self.num_heads, -1))
        memory = parts.permute(0, 2, 3, 4, 1, 5).contiguous()
        own = h.gather(1, position[..., None].expand(-1, -1, dim))
        x = (self.state(own)[:, :, None] + self.shared).flatten(1, 2)  # [B, S * m, D]
        mask = _cross_mask(visible, len(self.shared))
        shared = []
        for layer, block in enumerate(self.blocks):
            qkv = block.project(x).unflatten(1, (num_states, -1)).flatten(0, 1)
            query, key, value = qkv.permute(2, 0, 3, 1, 4)  # [B * S, H, m, D/H]
            attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            attended = attended.transpose(1, 2).reshape(x.shape)
            x = block.finish(x, attended, memory[:, layer], mask)
            shared.append(torch.stack([key, value], dim=1).unflatten(0, (batch, -1)))
        start = x.unflatten(1, (num_states, -1))[:, :, -1]
        return DecoderState(memory, torch.stack(shared, dim=2), self.norm(start), visible)

    def embed(self, codes: Int[Tensor, "*batch n"], first_level: int = 0) -> Tensor:
        """Return embeddings of codes at levels first_level, first_level + 1, ... (0-based)."""
        level = torch.arange(first_level, first_level + codes.shape[-1], device=codes.device)
        return F.embedding(codes + level * self.num_codes, self.codes)

    def candidates(
        self, state: DecoderState, codes: Int[Tensor, "B S K n"]
    ) -> Float[Tensor, "B S K n D"]:
        """Return outputs after each code of known paths, all levels in one pass."""
        batch, states, num_candidates, num_own = codes.shape
        num_shared = state.shared.shape[-2]
        x = self.embed(codes).view(batch, states * num_candidates * num_own, -1)
        cross = _cross_mask(state.visible, num_candidates * num_own)
        mask = candidate_mask(num_shared, num_candidates, num_own, codes.device)
        for layer, block in enumerate(self.blocks):
            qkv = block.project(x).view(batch * states, -1, 3, *state.shared.shape[-3::2])
            query, key, value = qkv.permute(2, 0, 3, 1, 4)
            shared_key, shared_value = state.shared[:, :, layer].flatten(0, 1).unbind(1)
            attended = F.scaled_dot_product_attention(
                query,
                torch.cat([shared_key, key], dim=2),
                torch.cat([shared_value, value], dim=2),
                attn_mask=mask,
            )
            attended = attended.transpose(1, 2).reshape(x.shape)
            x = block.finish(x, attended, state.memory[:, layer], cross)
        return self.norm(x).view(batch, states, num_candidates, num_own, -1)

    def extend(
        self,
        state: DecoderState,
        past: Float[Tensor, "B W N 2 n D"] | None,
        code: Int[Tensor, "B W"],
        level: int,
    ) -> tuple[Float[Tensor, "B W D"], Tensor]:
        """Return outputs after one more code per beam, and keys and values with it appended.

        Args:
            state: Of requests, that is with S = 1.
            past: Keys and values of the codes before, already gathered by parent; None at first.
            code: The code of each beam at 0-based `level`.
            level: How many codes came before.
        """
        x = self.embed(code[..., None], level).squeeze(2)
        mask = _cross_mask(state.visible, 1)
        kept = []
        for layer, block in enumerate(self.blocks):
            qkv = block.project(x)
            own = qkv[:, :, 1:, None].flatten(-2)  # [B, W, 2, 1, D]
            if past is not None:
                own = torch.cat([past[:, :, layer], own], dim=3)
            kept.append(own)
            attended = _attend_step(qkv[:, :, 0], state.shared[:, 0, layer], own)
            x = block.finish(x, attended, state.memory[:, layer], mask)
        return self.norm(x), torch.stack(kept, dim=2)


def _cross_mask(visible: Bool[Tensor, "B S T"], queries: int) -> Tensor:
    """Return bool [B, 1, 1, T] for one state per sequence, else [B, 1, S * queries, T]."""
    if visible.shape[1] == 1:
        return visible[:, None]
    return visible.repeat_interleave(queries, dim=1)[:, None]


def _attend_step(query: Tensor, shared: Tensor, own: Tensor) -> Tensor:
    """Attend from one token per beam to the shared tokens and to the beam's own codes.

    A beam has a few codes only, so products and sums over them are cheaper than one large masked
    attention in which every beam meets every other's keys.

    Args:
        query: [B, W, H, D/H].
        shared: [B, 2, H, m, D/H].
        own: [B, W, 2, n, D].
    """
    num_shared = shared.shape[3]
    query = query * query.shape[-1] ** -0.5
    shared_key, shared_value = shared.unbind(1)
    own_key, own_value = own.unflatten(-1, query.shape[2:]).unbind(2)  # [B, W, n, H, D/H]
    shared_score = (query.transpose(1, 2) @ shared_key.mT).permute(0, 2, 3, 1)
    own_score = (query[:, :, None] * own_key).sum(-1)
    weight = torch.cat([shared_score, own_score], dim=2).softmax(2)  # [B, W, m + n, H]
    to_shared, to_own = weight.split([num_shared, own_score.shape[2]], dim=2)
    from_shared = (to_shared.permute(0, 3, 1, 2) @ shared_value).transpose(1, 2)
    return (from_shared + (to_own[..., None] * own_value).sum(2)).flatten(2)


def gather_beams(kept: Tensor, parent: Int[Tensor, "B W"]) -> Tensor:
    """Return [B, W, ...], the entries of `kept` [B, W', ...] that `parent` names."""
    batch, width = kept.shape[:2]
    first = torch.arange(0, batch * width, width, device=parent.device)
    rows = (parent + first[:, None]).flatten()
    return kept.flatten(0, 1).index_select(0, rows).unflatten(0, parent.shape)
