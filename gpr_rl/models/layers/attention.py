"""Attention of the HSD under the hybrid mask: by one score matrix, in chunks, or by a fused kernel.

Dims: B sequences, T tokens, Q queries and K keys of a chunk, d width of a head, H heads.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from gpr_rl.models.masks import bucket_of_distance, hybrid_mask, time_bucket

_ALL = slice(None)
_ROTARY_BASE = 10_000.0
_CACHE_BYTES = 512 * 1024  # of one core's own cache
_PROMPT_ROWS = 128  # rows of the prompt block that one masked call of the fused kernel takes


@dataclass(frozen=True)
class Pairs:
    """Who may attend to whom among the tokens of B sequences, and how far apart they are."""

    kind: Tensor
    """int64 [B, T], a TokenType."""
    prompt_length: Tensor
    """int64 [B]."""
    dtype: torch.dtype
    """Of the scores."""
    hybrid: bool = True
    """Two-way attention inside the prompt block."""
    chunk: int = 0
    """Queries that meet their keys at a time when a bias is learned; 0: all of them."""
    position: Tensor | None = None
    """int64 [B, T], index of each token in its whole sequence; None where no token was left out."""
    time: Tensor | None = None
    """int64 [B, T], seconds; None where no bias needs it."""

    def longest_prompt(self) -> int:
        """Return how many leading tokens may see a later one, in any sequence."""
        longest = int(F.pad(self.prompt_length, (0, 1)).max()) if self.hybrid else 0
        return min(longest, self.kind.shape[1])

    def visible(self, queries: slice, keys: slice) -> Bool[Tensor, "B 1 Q K"]:
        """Return True where these queries may see these keys."""
        return hybrid_mask(
            self.kind, self.prompt_length, hybrid=self.hybrid, queries=queries, keys=keys
        )[:, None]

    def mask(self, queries: slice, keys: slice) -> Float[Tensor, "b 1 Q K"]:
        """Return what is added to the scores: 0 where visible, else a very negative number.

        b is B, or 1 where all sequences have the same.
        """
        visible = self.visible(queries, keys)
        visible = visible if self.hybrid else visible[:1]  # the same for every sequence
        mask = torch.zeros(visible.shape, dtype=self.dtype, device=visible.device)
        return mask.masked_fill_(~visible, torch.finfo(self.dtype).min)

    def distance(self, queries: slice, keys: slice) -> Int[Tensor, "*b Q K"]:
        """Return the buckets of how many tokens lie between, without B where all are alike."""
        if self.position is None:
            at = torch.arange(self.kind.shape[1], device=self.kind.device)
            return bucket_of_distance(at[queries, None] - at[None, keys])
        at, reach = self.position, int(self.position.max())
        distance = torch.arange(-reach, reach + 1, device=at.device)
        lookup = bucket_of_distance(distance)  # far fewer distances than pairs
        return lookup[at[:, queries, None] - at[:, None, keys] + reach]

    def between(self, queries: slice, keys: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return `mask`, `distance` and, where times are known, the buckets of the time between."""
        elapsed = None
        if self.time is not None:
            elapsed = time_bucket(self.time[:, queries, None] - self.time[:, None, keys])
        return self.mask(queries, keys), self.distance(queries, keys), elapsed

    @cached_property
    def whole(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return `between` all tokens, which all blocks share."""
        return self.between(_ALL, _ALL)


class Biases(NamedTuple):
    """The learned parts of the scores: a table [buckets, H] per kind of distance, if any."""

    distance: Tensor | None = None
    time: Tensor | None = None


def attend(
    vqk: Float[Tensor, "3 B H T d"], pairs: Pairs, biases: Biases, *, rotary: bool
) -> Float[Tensor, "B H T d"]:
    """Return softmax attention, GPR Eq. 1 without the gate; `vqk` may hold anything at padding.

    Without a learned bias the fused kernel does it, in memory linear in T. With one, which needs a
    gradient, that kernel makes more copies than the plain products: all scores at once, or chunk by
    chunk with the scores computed again on the way back. `rotary` is that of Su et al. 2021.
    """
    value, query, key = vqk.unbind()
    if rotary:
        turn = _turn(pairs, query.shape[-1], query.dtype)
        query, key = _rotate(query, *turn), _rotate(key, *turn)
    if biases.distance is None and biases.time is None:
        return _fused(query, key, value, pairs)
    if 0 < pairs.chunk < query.shape[2]:
        return _chunked(query, key, value, pairs, biases)
    return _plain(query, key, value, biases, *pairs.whole)


def _plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    biases: Biases,
    mask: Tensor,
    distance: Tensor,
    elapsed: Tensor | None,
) -> Tensor:
    """Return attention of queries [B, H, Q, d] by plain matrix products."""
    found = [
        table.index_select(0, bucket.flatten()).view(*bucket.shape, table.shape[1]).movedim(-1, -3)
        for bucket, table in ((distance, biases.distance), (elapsed, biases.time))
        if bucket is not None and table is not None
    ]
    bias = sum(found[1:], found[0])
    bias = bias if bias.dim() == 4 else bias[None]  # [b, H, Q, K]
    if query.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
        out: Tensor = _InCache.apply(query, key, value, bias, mask)
        return out
    score = query @ key.mT * query.shape[-1] ** -0.5 + (bias + mask)
    return score.softmax(-1) @ value


class _InCache(torch.autograd.Function):
    """softmax(Q K^T / sqrt(d) + bias + mask) V, as many sequences at a time as fit the cache.

    On a CPU and in training this halves the time at 128 tokens. There is no second derivative.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, mask: Tensor
    ) -> Tensor:
        """Take query [B, H, Q, d], key and value [B, H, K, d], bias [b, H, Q, K], mask without H.

        The first dim of bias and mask is B, or 1.
        """
        batch, heads, rows, width = query.shape
        shape = heads, rows, key.shape[2]
        parts = _pieces(batch, math.prod(shape) * query.element_size())
        keeps = any(ctx.needs_input_grad)
        flat = [x.flatten(0, 1) for x in (query, key, value)]
        size = batch if keeps else max((part.stop - part.start for part in parts), default=0)
        kept = query.new_empty(size * heads, *shape[1:])
        out = query.new_empty(query.shape)
        flat_out, is_shared = out.flatten(0, 1), len(bias) == len(mask) == 1
        bias = bias + mask if is_shared else bias
        for part in parts:
            run = slice(part.start * heads, part.stop * heads)
            score = kept[run] if keeps else kept[: run.stop - run.start]
            q, k, v = (x[run] for x in flat)
            whole = score.view(part.stop - part.start, *shape).copy_(_of(bias, part))
            if not is_shared:
                whole += _of(mask, part)
            torch.baddbmm(score, q, k.mT, alpha=width**-0.5, out=score)
            torch.softmax(score, -1, out=score)
            torch.bmm(score, v, out=flat_out[run])
        ctx.save_for_backward(*flat, kept, out)
        ctx.parts, ctx.shape, ctx.bias_shape = parts, shape, bias.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of all but the mask."""
        query, key, value, kept, out = ctx.saved_tensors
        heads, scale = ctx.shape[0], query.shape[-1] ** -0.5
        grad = grad.flatten(0, 1)
        # each row's mean of the probabilities' gradients, weighted by them
        level = (grad * out.flatten(0, 1)).sum(-1, keepdim=True)
        grads = [torch.empty_like(x) for x in (query, key, value)]
        bias = query.new_zeros(ctx.bias_shape)
        for part in ctx.parts:
            run = slice(part.start * heads, part.stop * heads)
            g, p, q, k, v = (x[run] for x in (grad, kept, query, key, value))
            to_q, to_k, to_v = (x[run] for x in grads)
            torch.bmm(p.mT, g, out=to_v)
            score = torch.bmm(g, v.mT).sub_(level[run]).mul_(p)
            torch.baddbmm(to_q, score, k, beta=0.0, alpha=scale, out=to_q)
            torch.baddbmm(to_k, score.mT, q, beta=0.0, alpha=scale, out=to_k)
            added = score.view(part.stop - part.start, *ctx.shape)
            own = _of(bias, part)
            own += added if len(own) == len(added) else added.sum(0)
        shapes = [x.unflatten(0, (-1, heads)) for x in grads]
        return *shapes, bias, None


def _of(x: Tensor, part: slice) -> Tensor:
    """Return the sequences `part`, or what all share."""
    return x if len(x) == 1 else x[part]


def _pieces(batch: int, num_bytes: int) -> list[slice]:
    """Return slices of so many sequences that their scores, `num_bytes` each, fit the cache."""
    size = max(1, _CACHE_BYTES // max(1, num_bytes))
    return [slice(start, min(start + size, batch)) for start in range(0, batch, size)]


def _chunked(query: Tensor, key: Tensor, value: Tensor, pairs: Pairs, biases: Biases) -> Tensor:
    """Return attention of all queries; the scores of one chunk at a time exist."""

    def chunk(query: Tensor, key: Tensor, value: Tensor, queries: slice, keys: slice) -> Tensor:
        return _plain(query, key, value, biases, *pairs.between(queries, keys))

    found, furthest = [], pairs.longest_prompt()
    for start in range(0, query.shape[2], pairs.chunk):
        queries = slice(start, start + pairs.chunk)
        keys = slice(0, max(queries.stop, furthest) if start < furthest else queries.stop)
        parts = query[:, :, queries], key[:, :, keys], value[:, :, keys]
        found.append(
            checkpoint(chunk, *parts, queries, keys, use_reentrant=False, preserve_rng_state=False)
        )
    return torch.cat(found, dim=2)


def _fused(query: Tensor, key: Tensor, value: Tensor, pairs: Pairs) -> Tensor:
    """Return attention without biases: causal for all rows, masked for those of the prompt."""
    found = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    prompt = pairs.longest_prompt()
    if prompt < 2:
        return found
    key, value = key[:, :, :prompt], value[:, :, :prompt]
    parts = []
    for start in range(0, prompt, _PROMPT_ROWS):
        queries = slice(start, min(start + _PROMPT_ROWS, prompt))
        visible = pairs.visible(queries, slice(0, prompt))
        part = query[:, :, queries]
        parts.append(F.scaled_dot_product_attention(part, key, value, attn_mask=visible))
    return torch.cat([*parts, found[:, :, prompt:]], dim=2)


def _turn(pairs: Pairs, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosine and sine [1 or B, 1, T, d / 2] of the angle of every position and channel."""
    position = pairs.position
    if position is None:
        position = torch.arange(pairs.kind.shape[1], device=pairs.kind.device)[None]
    channel = torch.arange(0, width, 2, device=position.device, dtype=torch.float64)
    angle = position[:, None, :, None] * _ROTARY_BASE ** (-channel / width)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def _rotate(x: Float[Tensor, "B H T d"], cos: Tensor, sin: Tensor) -> Float[Tensor, "B H T d"]:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def compacted(
    pairs: Pairs, owner: Int[Tensor, " A"], index: Int[Tensor, " A"]
) -> tuple[Pairs, Int[Tensor, " A"]]:
    """Return the pairs among A > 0 chosen tokens, and where these stand now in [B * T'].

    T' is the most that a sequence keeps. A sequence's tokens keep their order, so causality and the
    prompt block mean the same; distances still count the tokens left out. `owner` is the sequence
    of each chosen token, `index` its place there.
    """
    batch, num_tokens = pairs.kind.shape
    chosen = torch.zeros_like(pairs.kind, dtype=torch.bool)
    chosen[owner, index] = True
    rank = chosen.cumsum(1)[owner, index] - 1
    length = int(rank.max()) + 1
    place = owner * length + rank

    def move(column: Tensor) -> Tensor:
        moved = column.new_zeros(batch * length)
        return moved.index_copy(0, place, column[owner, index]).view(batch, length)

    everywhere = torch.arange(num_tokens, device=owner.device)
    position = everywhere.expand(batch, -1) if pairs.position is None else pairs.position
    smaller = replace(
        pairs,
        kind=move(pairs.kind),
        prompt_length=(chosen & (everywhere < pairs.prompt_length[:, None])).sum(1),
        position=move(position),
        time=None if pairs.time is None else move(pairs.time),
    )
    return smaller, place
