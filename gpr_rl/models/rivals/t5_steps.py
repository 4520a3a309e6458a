"""transformers' T5 one code at a time, on its own weights: nothing that beams share is done twice.

Of a request's beams only the newest codes run. They attend to keys and values of the encoder's
states, made once per request, and of earlier codes, made once per code. Results are those of
transformers' modules up to rounding, without dropout and without gradients.

Dims: B requests, W beams, S input ids, R rows (the beams of some requests), D width, H heads,
d width of a head, N decoder layers, n decoder inputs so far, the newest included.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gpr_rl.decoding.policy import pick

_LOGIT_ROWS = 64
"""Rows that have logits at a time; logits over a whole vocabulary soon fill a processor's cache."""
_KEY_MULTIPLE = 16
"""Of the encoder's keys, a vector register: attention to 61 takes a fifth longer than to 64."""


class Memory(NamedTuple):
    """The encoder's states as the decoder's cross-attention reads them."""

    key: list[Tensor]  # per layer [B, H, S, d]
    value: list[Tensor]
    mask: Tensor  # [B, 1, 1, S], 0 where the input is real, else -inf

    def part(self, rows: slice) -> "Memory":
        """Return that of some requests."""
        key, value = ([x[rows] for x in layers] for layers in (self.key, self.value))
        return Memory(key, value, self.mask[rows])


class Past(NamedTuple):
    """Self-attention's keys and values of one decoder input per beam."""

    key: Tensor  # [N, B, w, H, d], of the w beams that there were then
    value: Tensor
    beam: Tensor | None = None  # int64 [B, W], which of them each beam comes from; None: its own

    def follow(self, parent: Int[Tensor, "B W"]) -> "Past":
        """Return what beams that continue the beams `parent` read; copies nothing."""
        if self.key.shape[2] == 1:  # the first input: all beams' own
            return self
        return self._replace(beam=parent if self.beam is None else self.beam.gather(1, parent))

    def part(self, rows: slice) -> "Past":
        """Return that of some requests."""
        beam = None if self.beam is None else self.beam[rows]
        return Past(self.key[:, rows], self.value[:, rows], beam)

    def at(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of a layer [B, W, H, d], or of all beams at once [B, 1, H, d]."""
        key, value = self.key[layer], self.value[layer]
        return (key, value) if self.beam is None else (pick(key, self.beam), pick(value, self.beam))


@torch.no_grad()
def encode(
    t5: Any, ids: Int[Tensor, "B S"], mask: Bool[Tensor, "B S"], max_rows: int
) -> Float[Tensor, "B S D"]:
    """Return the encoder's states; `mask` is True where ids are real, at least once per request.

    Requests run in groups of at most `max_rows` ids, at least one request.

    Raises:
        ValueError: A T5 whose feed-forward networks have a gate or no ReLU, as in version 1.1.
    """
    if t5.config.feed_forward_proj != "relu":
        raise ValueError(f"feed_forward_proj must be relu, got {t5.config.feed_forward_proj}")
    group = max(1, max_rows // ids.shape[1])
    parts = zip(ids.split(group), mask.split(group), strict=True)
    return torch.cat([_encode(t5, *part) for part in parts])


def _encode(t5: Any, ids: Tensor, mask: Tensor) -> Tensor:
    stack, length = t5.encoder, ids.shape[1]
    bias = stack.block[0].layer[0].SelfAttention.compute_bias(length, length)
    bias = bias.masked_fill(~mask[:, None, None], -torch.inf)  # [B, H, S, S], of all layers
    x = F.embedding(ids.flatten(), t5.shared.weight)  # [B S, D]
    for own, feed in (block.layer for block in stack.block):
        attention, normed = own.SelfAttention, own.layer_norm(x)
        query, key, value = (
            _heads(project(normed), attention, ids)
            for project in (attention.q, attention.k, attention.v)
        )
        found = F.scaled_dot_product_attention(query, key, value, bias, scale=1.0)
        _add(x, found.transpose(1, 2), attention.o)
        _feed(x, feed)
    return stack.final_layer_norm(x).unflatten(0, ids.shape)


@torch.no_grad()
def remember(t5: Any, hidden: Float[Tensor, "B S D"], mask: Bool[Tensor, "B S"]) -> Memory:
    """Return what beams share of the encoder's states; `mask` is True where these are real."""
    padding = -hidden.shape[1] % _KEY_MULTIPLE
    hidden = F.pad(hidden, (0, 0, 0, padding))
    mask = F.pad(mask, (0, padding), value=False)
    attentions = [block.layer[1].EncDecAttention for block in t5.decoder.block]
    return Memory(
        [_heads(x.k(hidden), x, mask) for x in attentions],
        [_heads(x.v(hidden), x, mask) for x in attentions],
        hidden.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)[:, None, None],
    )


@torch.no_grad()
def advance(
    t5: Any, memory: Memory, past: list[Past], ids: Int[Tensor, "B W"], max_rows: int
) -> tuple[Float[Tensor, "B W D"], Past]:
    """Return the decoder's outputs at one more input id per beam, and what later ones read of it.

    Requests run in groups of at most `max_rows` beams, at least one request; what is held for all
    B W beams are the results, D + 2 N H d numbers each.
    """
    first = t5.decoder.block[0].layer[0].SelfAttention
    shape = (len(t5.decoder.block), *ids.shape, first.n_heads, first.key_value_proj_dim)
    new = Past(memory.mask.new_empty(shape), memory.mask.new_empty(shape))
    states = memory.mask.new_empty(*ids.shape, t5.config.d_model)
    num_inputs = len(past) + 1
    bias = first.compute_bias(num_inputs, num_inputs)[0, :, -1]  # [H, n]; of all layers
    group = max(1, max_rows // ids.shape[1])
    for start in range(0, len(ids), group):
        rows = slice(start, start + group)
        parts = [*(x.part(rows) for x in past), new.part(rows)]
        states[rows] = _run(t5, memory.part(rows), parts, ids[rows], bias)
    return states, new


def _run(t5: Any, memory: Memory, path: list[Past], ids: Tensor, bias: Tensor) -> Tensor:
    """Return outputs [B, W, D] at the ids; their keys and values are written into `path[-1]`."""
    x = F.embedding(ids.flatten(), t5.shared.weight)  # [R, D]
    for layer, block in enumerate(t5.decoder.block):
        own, cross, feed = block.layer
        found = _attend_path(own.layer_norm(x), own.SelfAttention, layer, path, bias)
        _add(x, found, own.SelfAttention.o)
        attention = cross.EncDecAttention
        query = _heads(attention.q(cross.layer_norm(x)), attention, ids)
        key, value = memory.key[layer], memory.value[layer]
        found = F.scaled_dot_product_attention(query, key, value, memory.mask, scale=1.0)
        _add(x, found.transpose(1, 2), attention.o)
        _feed(x, feed)
    return t5.decoder.final_layer_norm(x).unflatten(0, ids.shape)


def _attend_path(
    x: Float[Tensor, "R D"], attention: Any, layer: int, path: list[Past], bias: Tensor
) -> Float[Tensor, "B W H d"]:
    """Return what the inputs x find at themselves and at earlier ones of their beams."""
    key, value = path[-1].at(layer)
    torch.mm(x, attention.k.weight.t(), out=key.view(len(x), -1))
    torch.mm(x, attention.v.weight.t(), out=value.view(len(x), -1))
    if len(path) == 1:
        return value
    query = attention.q(x).view(key.shape)
    keys, values = zip(*(past.at(layer) for past in path), strict=True)
    # products of matrices, one per beam and head, of so few keys take several times as long
    score = torch.stack([(query * key).sum(-1) for key in keys])  # [n, B, W, H]
    weight = score.add_(bias.t()[:, None, None]).softmax(0)[..., None]
    found = value * weight[-1]
    for earlier, share in zip(values[:-1], weight[:-1], strict=True):
        found.addcmul_(earlier, share)
    return found


@torch.no_grad()
def next_log_prob(
    t5: Any, states: Float[Tensor, "*batch D"], start: int, stop: int
) -> Float[Tensor, "*batch V"]:
    """Return log-probabilities of the ids from `start` to `stop` - 1, among all ids."""
    config = t5.config  # transformers 5 tells apart what were one thing before
    if getattr(config, "scale_decoder_outputs", config.tie_word_embeddings):
        states = states * config.d_model**-0.5
    flat = states.flatten(0, -2)
    found = flat.new_empty(len(flat), stop - start)
    for rows, into in zip(flat.split(_LOGIT_ROWS), found.split(_LOGIT_ROWS), strict=True):
        into.copy_(t5.lm_head(rows).log_softmax(-1)[:, start:stop])
    return found.view(*states.shape[:-1], -1)


def _heads(x: Float[Tensor, "*rows D"], attention: Any, of: Tensor) -> Float[Tensor, "B H n d"]:
    """Return rows of `of` [B, n] by head; nothing is copied."""
    return x.view(*of.shape, attention.n_heads, -1).transpose(1, 2)


def _feed(x: Float[Tensor, "R D"], feed: Any) -> None:
    """Add a feed-forward network's output to x in place."""
    dense = feed.DenseReluDense
    _add(x, dense.wi(feed.layer_norm(x)).relu_(), dense.wo)


def _add(x: Float[Tensor, "R D"], y: Tensor, linear: Any) -> None:
    """Add a linear map of y, whose rows are those of x, to x in place."""
    x.addmm_(y.reshape(len(x), -1), linear.weight.t())
