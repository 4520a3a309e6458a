"""Which tokenizer gives a world's items their semantic IDs, and what becomes of shared paths.

Dims: N ads, M organic items, d embedding width, L levels, V codes of a level.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from gpr_rl.tokenizers import UASID, Tokenizer, resolve_collisions
from gpr_rl.tokenizers.code_index import RESOLVE
from gpr_rl.tokenizers.kinds import tokenizer_class


def check_ids(tokenizer: str, resolve: str, num_levels: int, num_codes: int) -> None:
    """Check the names, and that the sizes suit the tokenizer.

    Raises:
        ValueError: Unknown name, or too few codes or levels for `ua_sid`.
    """
    tokenizer_class(tokenizer)
    if resolve not in RESOLVE:
        raise ValueError(f"resolve must be one of {', '.join(RESOLVE)}, got {resolve!r}")
    if tokenizer == "ua_sid" and (num_levels < 2 or num_codes < 4):
        raise ValueError(
            f"ua_sid needs at least 2 levels and 4 codes, got {num_levels} and {num_codes}"
        )


def make_ids(
    embedding: np.ndarray,
    ads: pd.DataFrame,
    organic: pd.DataFrame,
    *,
    tokenizer: str,
    resolve: str,
    num_levels: int,
    num_codes: int,
    seed: int,
) -> tuple[Tokenizer, Int[Tensor, "n L"]]:
    """Fit a tokenizer on all items and return it with their codes, int64 [N + M, L].

    With `ua_sid` the codebooks shrink with depth: the first level has 4 V codes, the last V / 4, a
    hash of account, conversion type and item. With `resolve="suffix"` there is a level more than
    `num_levels`; ads and organic items are counted apart.

    `embedding` is float32 [N + M, d]; `ads` has advertiser, bid_type and ad_id, `organic` creator
    and item_id.
    """
    check_ids(tokenizer, resolve, num_levels, num_codes)
    fitted: Tokenizer
    if tokenizer == "ua_sid":
        middle = (num_codes,) * (num_levels - 2)
        sizes = (min(4 * num_codes, len(embedding)), *middle, num_codes // 4)
        fitted = UASID(num_levels, sizes, seed).fit(embedding, business_keys(ads, organic))
        codes = fitted.index.codes(range(len(embedding)))
    else:
        fitted = tokenizer_class(tokenizer)(num_levels, num_codes, seed).fit(embedding)
        codes = fitted.encode(embedding)
    parts = codes.split([len(ads), len(organic)])
    return fitted, torch.cat([resolve_collisions(part, resolve) for part in parts])


def business_keys(ads: pd.DataFrame, organic: pd.DataFrame) -> Mapping[str, list[str]]:
    """Return account, conversion type and item of ads, then of organic items, as text."""
    return {
        "advertiser": [*ads["advertiser"].astype(str), *organic["creator"].astype(str)],
        "conversion_type": [*ads["bid_type"].astype(str), *["organic"] * len(organic)],
        "ad": [*(f"ad {i}" for i in ads["ad_id"]), *(f"item {i}" for i in organic["item_id"])],
    }
