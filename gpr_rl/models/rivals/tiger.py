"""TIGER: a T5 that reads the codes of past items and writes the next one's (Rajput et al. 2023).

The T5 is that of the package transformers, which is asked for only when a `TIGER` is made.

Dims: B requests, T tokens, R rows (predictions), S input ids, W prefixes, L levels, V codes.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gpr_rl.decoding import CodeTrie, beam_search
from gpr_rl.models.checks import check_some, check_tokens
from gpr_rl.models.retrieval import NextAdBatch
from gpr_rl.models.rivals import t5_steps
from gpr_rl.models.rivals.parts import RivalConfig, item_columns, last_position, path_loss
from gpr_rl.schema import InputSpec, Tokens

PAD_ID = 0
"""Padding, and the decoder's first input."""
END_ID = 1
"""End of sequence, which T5 wants to exist; never read, never written."""
_FIRST_CODE = 2


@dataclass(frozen=True, kw_only=True)
class TIGERConfig(RivalConfig):
    """Sizes of `TIGER`. Of TIGER itself: dim 128, 6 heads, dropout 0.1."""

    head_dim: int | None = None
    """Width of a head; None: dim / num_heads, which must be whole. TIGER: 64."""
    num_encoder_layers: int = 2
    """TIGER: 4."""
    num_decoder_layers: int = 2
    """TIGER: 4."""
    ffn_multiple: int = 4
    """Hidden width of feed-forward networks in units of `dim`. TIGER: 8."""
    num_user_tokens: int = 64
    """Ids that user attributes are hashed to. TIGER: 2,000, for user ids."""
    max_items: int = 50
    """Latest items that are read. TIGER: 20."""
    max_rows: int = 512
    """At a time: rows of the encoder in training, its ids and the decoder's beams in search.

    Bounds memory but for the keys and values that a search holds: two vectors per head and decoder
    layer, of every id read and of every beam at every level. In TIGER 12 KB each.
    """

    def _check_heads(self) -> None:
        if self.head_dim is None:
            super()._check_heads()


class TIGERContext(NamedTuple):
    """What the encoder made of B requests."""

    hidden: Tensor  # [B, S, D]
    mask: Tensor  # bool [B, S]


class TIGERCache(NamedTuple):
    """What `TIGER.extend` goes on from."""

    memory: t5_steps.Memory
    path: list[t5_steps.Past]
    """Of the decoder's first input, then of every code so far."""


def user_token(user: Int[Tensor, "B A"], num_user_tokens: int) -> Int[Tensor, " B"]:
    """Return a hash of each row's attributes in [0, num_user_tokens), the same everywhere."""
    mixed = user.new_zeros(len(user))
    for column in user.unbind(1):
        mixed = (mixed * 1_000_003 + column + 1) % 2_147_483_647
    return mixed % num_user_tokens


class TIGER(nn.Module):
    """transformers' T5 (`t5`) over [user, codes of past items, oldest first]; the target is a path.

    Each supervised position of a window is a row of its own, made of the items before it only.
    It is a `gpr_rl.decoding.policy.Policy` over `Tokens`, with value 0. Probabilities are over
    the whole vocabulary, so those of a level's codes sum to less than 1; illegal codes leave in
    the beam search.

    Differs from TIGER: past items are ads and organic items alike; the user token is a hash of
    attributes; paths that several ads share get no further code, but stand for one ad.

    Raises:
        ImportError: transformers is not installed.
    """

    def __init__(self, config: TIGERConfig, spec: InputSpec, trie: CodeTrie) -> None:
        super().__init__()
        self.config, self.spec, self.trie = config, spec, trie
        self.num_codes = spec.num_codes
        offset = torch.arange(spec.num_levels) * spec.num_codes + _FIRST_CODE
        self.register_buffer("offset", offset, persistent=False)
        self.first_user = _FIRST_CODE + spec.num_levels * spec.num_codes
        self.t5 = _make_t5(config, self.first_user + config.num_user_tokens)

    offset: Tensor

    def input_ids(
        self, tokens: Tokens, row: Int[Tensor, " R"], position: Int[Tensor, " R"]
    ) -> tuple[Int[Tensor, "R S"], Bool[Tensor, "R S"]]:
        """Return T5's input for predictions at tokens of some rows, and where it is real."""
        check_some(tokens)
        check_tokens(tokens, self.spec)
        columns, count = item_columns(tokens.kind)
        before = count[row, position]
        length = before.clamp_max(self.config.max_items)
        number = torch.arange(int(length.max()), device=row.device)
        real = number < length[:, None]
        number = ((before - length)[:, None] + number).clamp_max(columns.shape[1] - 1)
        codes = tokens.codes[row[:, None], columns[row[:, None], number]] + self.offset
        codes = codes.where(real[..., None], PAD_ID).flatten(1)
        user = user_token(tokens.user, self.config.num_user_tokens)[row, None] + self.first_user
        mask = F.pad(real.repeat_interleave(len(self.offset), dim=1), (1, 0), value=True)
        return torch.cat([user, codes], dim=1), mask

    def decoder_ids(self, prefix: Int[Tensor, "*batch l"]) -> Int[Tensor, "*batch n"]:
        """Return the decoder's input for the first l codes of paths, n = l + 1."""
        return F.pad(prefix + self.offset[: prefix.shape[-1]], (1, 0), value=PAD_ID)

    def loss(self, batch: NextAdBatch) -> Float[Tensor, ""]:
        """Return -log p(path) of the next ad, unmasked; see `Retriever.loss`."""

        def total(row: Tensor, position: Tensor, path: Tensor) -> Tensor:
            ids, mask = self.input_ids(batch.tokens, row, position)
            logits = self.t5(
                input_ids=ids,
                attention_mask=mask,
                decoder_input_ids=self.decoder_ids(path[:, :-1]),
                use_cache=False,
            ).logits
            target = (path + self.offset).flatten()
            return F.cross_entropy(logits.flatten(0, 1), target, reduction="sum")

        return path_loss(batch, total, self.config.max_rows, self.t5.shared.weight)

    def encode(self, request: Tokens) -> TIGERContext:
        """Run the encoder on B requests, without dropout and without a gradient."""
        row = torch.arange(len(request), device=request.kind.device)
        ids, mask = self.input_ids(request, row, last_position(request)[:, 0])
        return TIGERContext(t5_steps.encode(self.t5, ids, mask, self.config.max_rows), mask)

    def step(
        self, context: TIGERContext, prefix: Int[Tensor, "B W l"]
    ) -> tuple[Float[Tensor, "B W V"], Float[Tensor, "B W"]]:
        """Return log-probabilities of the next code, unmasked, and zeros for values."""
        width, level = prefix.shape[1:]
        start = _FIRST_CODE + level * self.num_codes
        group = max(1, self.config.max_rows // width)
        parts = [x.split(group) for x in (*context, self.decoder_ids(prefix))]
        found = []
        for hidden, mask, ids in zip(*parts, strict=True):
            logits = self.t5(
                encoder_outputs=(hidden.repeat_interleave(width, dim=0),),
                attention_mask=mask.repeat_interleave(width, dim=0),
                decoder_input_ids=ids.flatten(0, 1),
                use_cache=False,
            ).logits[:, -1]
            log_prob = logits.log_softmax(-1)[:, start : start + self.num_codes]
            found.append(log_prob.unflatten(0, (-1, width)))
        log_prob = torch.cat(found)
        return log_prob, log_prob.new_zeros(prefix.shape[:2])

    def begin(self, context: TIGERContext) -> tuple[Tensor, Tensor, TIGERCache]:
        """Return `step` of the empty prefix, and the cache that `extend` goes on from.

        Both compute what `step` does, sooner, and as `encode` does.
        """
        cache = TIGERCache(t5_steps.remember(self.t5, *context), [])
        return self._next(cache, self.offset.new_full((len(context.mask), 1), PAD_ID))

    def extend(
        self,
        context: TIGERContext,
        cache: TIGERCache,
        parent: Int[Tensor, "B W"],
        code: Int[Tensor, "B W"],
    ) -> tuple[Float[Tensor, "B W V"], Float[Tensor, "B W"], TIGERCache]:
        """Return `step` after `code` is appended to beam `parent` of the cache.

        At most L - 1 times in a row: the L-th code needs no continuation.
        """
        path = [past.follow(parent) for past in cache.path]
        return self._next(TIGERCache(cache.memory, path), code + self.offset[len(path) - 1])

    def _next(self, cache: TIGERCache, ids: Tensor) -> tuple[Tensor, Tensor, TIGERCache]:
        memory, path = cache
        states, new = t5_steps.advance(self.t5, memory, path, ids, self.config.max_rows)
        start = _FIRST_CODE + len(path) * self.num_codes
        log_prob = t5_steps.next_log_prob(self.t5, states, start, start + self.num_codes)
        return log_prob, log_prob.new_zeros(ids.shape), TIGERCache(memory, [*path, new])

    @torch.no_grad()
    def rank(self, tokens: Tokens, item: Int[Tensor, "B T"], k: int) -> Int[Tensor, "B k"]:
        """Return the ads of the k paths that a beam of width k finds; see `Retriever.rank`."""
        return beam_search(self, tokens, self.trie, k).ad_id


def _make_t5(config: TIGERConfig, num_ids: int) -> Any:
    try:
        from transformers import T5Config, T5ForConditionalGeneration
    except ImportError as error:
        raise ImportError(
            "TIGER needs the package transformers: pip install transformers"
        ) from error
    sizes: dict[str, Any] = {
        "vocab_size": num_ids,
        "d_model": config.dim,
        "d_kv": config.head_dim or config.dim // config.num_heads,
        "d_ff": config.ffn_multiple * config.dim,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": config.num_heads,
        "dropout_rate": config.dropout,
        "pad_token_id": PAD_ID,
        "decoder_start_token_id": PAD_ID,
        "eos_token_id": END_ID,
    }
    return T5ForConditionalGeneration(T5Config(**sizes))
