"""Tiny catalogues, batches and models for the tests of the rivals."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gpr_rl.decoding import CodeTrie
from gpr_rl.models.retrieval import NextAdBatch
from gpr_rl.models.rivals import (
    HSTU,
    TIGER,
    HSTUConfig,
    OneRec,
    OneRecConfig,
    SASRec,
    SASRecConfig,
    TIGERConfig,
)
from gpr_rl.schema import Tokens
from tests.gpr_rl.models.model_inputs import SPEC, E, I, O, make_request

NUM_ADS, NUM_ITEMS = 7, 11
ITEM_CODES = torch.tensor(
    [
        *([0, 0, 0], [0, 0, 1], [0, 2, 1], [3, 0, 1], [3, 4, 0], [0, 0, 0], [4, 4, 4]),
        *([1, 1, 1], [2, 0, 3], [3, 4, 0], [0, 2, 2]),
    ]
)
"""Ads 0 and 5 share a path, which stands for ad 0."""
AD_CODES = ITEM_CODES[:NUM_ADS]
PATH_ADS = [0, 1, 2, 3, 4, 6]


def make_trie() -> CodeTrie:
    return CodeTrie(AD_CODES, SPEC.num_codes)


def _sasrec(**sizes: Any) -> nn.Module:
    return SASRec(SASRecConfig(**sizes), SPEC, NUM_ADS, NUM_ITEMS)


def _hstu(**sizes: Any) -> nn.Module:
    return HSTU(HSTUConfig(**sizes), SPEC, NUM_ADS)


def _onerec(**sizes: Any) -> nn.Module:
    return OneRec(OneRecConfig(**sizes), SPEC, make_trie())


def _tiger(**sizes: Any) -> nn.Module:
    return TIGER(TIGERConfig(**{"num_user_tokens": 5, **sizes}), SPEC, make_trie())


MAKERS: dict[str, Callable[..., nn.Module]] = {
    "sasrec": _sasrec,
    "hstu": _hstu,
    "onerec": _onerec,
    "tiger": _tiger,
}


def make_rival(name: str, seed: int = 0, **sizes: Any) -> Any:
    """A small float64 model whose every parameter is random, those that start at zero included."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MAKERS[name](**{"dim": 8, "num_heads": 2, **sizes}).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def make_batch(lengths: list[int], seed: int = 0, num_positions: int = 2) -> NextAdBatch:
    """Windows of the given token counts, supervised at random ads at their last E tokens."""
    generator = torch.Generator().manual_seed(seed + 1000)
    tokens = make_request(lengths, seed).tokens
    ads = torch.randint(0, NUM_ADS, tokens.kind.shape, generator=generator)
    organic = torch.randint(NUM_ADS, NUM_ITEMS, tokens.kind.shape, generator=generator)
    item = torch.full_like(ads, -1)
    item = ads.where(tokens.kind == I, organic.where(tokens.kind == O, item))
    tokens.codes = ITEM_CODES[item] * (item >= 0)[..., None]
    position = torch.zeros(len(lengths), num_positions, dtype=torch.long)
    valid = torch.zeros(len(lengths), num_positions, dtype=torch.bool)
    for row, kind in enumerate(tokens.kind):
        found = (kind == E).nonzero()[-num_positions:, 0]
        position[row] = found[-1]
        position[row, num_positions - len(found) :] = found
        valid[row, num_positions - len(found) :] = True
    ad_id = torch.randint(0, NUM_ADS, position.shape, generator=generator)
    return NextAdBatch(tokens, item, position, ad_id, AD_CODES[ad_id], valid)


def rows(batch: NextAdBatch, index: Tensor) -> NextAdBatch:
    """Some rows of a batch."""
    return NextAdBatch(
        batch.tokens[index],
        *(x[index] for x in (batch.item, batch.position, batch.ad_id, batch.codes, batch.valid)),
    )


def resized(batch: NextAdBatch, length: int) -> NextAdBatch:
    """The same windows cut, or padded on the right, to `length` tokens."""

    def fit(x: Tensor, blank: int) -> Tensor:
        new = x.new_full((len(x), length, *x.shape[2:]), blank)
        kept = min(length, x.shape[1])
        new[:, :kept] = x[:, :kept]
        return new

    names = ("kind", "codes", "action", "time_gap", "context")
    old = batch.tokens
    tokens = Tokens(
        **{name: fit(getattr(old, name), 0) for name in names},
        user=old.user,
        preference=old.preference,
        prompt_length=old.prompt_length,
        batch_size=old.batch_size,
    )
    return NextAdBatch(
        tokens, fit(batch.item, -1), batch.position, batch.ad_id, batch.codes, batch.valid
    )


def with_other_end(batch: NextAdBatch, position: Tensor, seed: int) -> NextAdBatch:
    """The same windows with all that lies after their `position` [B] replaced, kinds included."""
    length = batch.item.shape[1]
    other = make_batch([length] * len(batch.item), seed)
    later = torch.arange(length) > position[:, None]
    tokens = batch.tokens.clone()
    for name in ("kind", "codes", "action", "time_gap", "context"):
        old, new = getattr(tokens, name), getattr(other.tokens, name)
        setattr(tokens, name, new.where(later.view(*later.shape, *[1] * (old.ndim - 2)), old))
    item = other.item.where(later, batch.item)
    return NextAdBatch(tokens, item, batch.position, batch.ad_id, batch.codes, batch.valid)
