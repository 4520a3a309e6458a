"""Residual codes: a centroid per level, each the nearest to what the levels before left over.

Dims: n rows, d width, L levels, V codes of a level.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gpr_rl.tokenizers.fitting.search import BLOCK, Nearest, full_precision


def check_rows(x: Float[Tensor, "n d"], num_codes: Sequence[int]) -> None:
    """Check that k-means has a row for every code.

    Raises:
        ValueError: Fewer rows than codes of a level.
    """
    if len(x) < max(num_codes):
        raise ValueError(
            f"k-means needs at least as many rows as codes: got {len(x)} rows for"
            f" {max(num_codes)} codes; choose a smaller num_codes"
        )


def encode_residual(
    x: Float[Tensor, "n d"],
    codebooks: Sequence[Tensor],
    offsets: Sequence[Tensor] | None = None,
) -> Int[Tensor, "n L"]:
    """Return the code of every level, int64 [n, L], of rows float32 [n, d].

    Codebooks are float32 [V, d], offsets float32 [V] (`search.nearest`), each per level.
    """
    searches = [
        Nearest(codebook, None if offsets is None else offsets[level])
        for level, codebook in enumerate(codebooks)
    ]
    codes = torch.empty(len(x), len(codebooks), dtype=torch.int64, device=x.device)
    with full_precision():
        for start in range(0, len(x), BLOCK):  # all levels of a block while it is in the cache
            residual = x[start : start + BLOCK].clone()
            for level, codebook in enumerate(codebooks):
                code = searches[level](residual)
                codes[start : start + BLOCK, level] = code
                if level + 1 < len(codebooks):
                    residual -= codebook.index_select(0, code)
    return codes


def sum_centroids(codes: Int[Tensor, "n L"], codebooks: Sequence[Tensor]) -> Float[Tensor, "n d"]:
    """Return the sum of each row's centroids, added up from level 1 on."""
    x_hat = codebooks[0][codes[:, 0]]
    for level in range(1, len(codebooks)):
        x_hat = x_hat + codebooks[level][codes[:, level]]
    return x_hat
