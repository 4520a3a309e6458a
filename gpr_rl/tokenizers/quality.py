"""How good a set of semantic IDs is (GPR 4.1, Tab. 1).

Dims: n items, d embedding width, L levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from gpr_rl.tokenizers.base import read_codes, read_embeddings, read_num_codes


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Measures of one coding of n items."""

    collision_rate: float
    """Share of items whose full path another item has too, in [0, 1]. Lower is better."""
    code_usage: Float[Tensor, " L"]
    """Share of each level's codes that some item has, in [0, 1] ("CUR"). Higher is better."""
    entropy: Float[Tensor, " L"]
    """Entropy of each level's codes over the items, in nats, at most log V."""
    path_similarity: float
    """Mean pairwise cosine similarity of the items of a shared path, averaged over these paths
    ("PAS"). NaN when no path is shared."""
    reconstruction_error: float
    """Mean squared L2 norm of x - x_hat. NaN when no x_hat was given."""


def quality(
    codes: ArrayLike | Tensor,
    x: ArrayLike | Tensor,
    num_codes: int | Sequence[int] | None = None,
    x_hat: ArrayLike | Tensor | None = None,
) -> Quality:
    """Return the quality of a coding, integers [n, L] of embeddings [n, d]; computed in float64.

    A row of zeros has cosine similarity 0 with every other row. `num_codes` are one for all levels
    or L; None: the highest code of the level plus one. `x_hat` [n, d] is decoded from `codes`.

    Raises:
        ValueError: Shapes that don't match, no rows, a code out of range, NaN or infinity.
    """
    x = read_embeddings(x).double()
    codes = torch.as_tensor(codes).to(x.device)
    if codes.ndim != 2 or len(codes) != len(x) or 0 in codes.shape:
        raise ValueError(
            f"codes must be [{len(x)}, L], a row for each of x and at least one,"
            f" got {list(codes.shape)}"
        )
    if num_codes is None:
        num_codes = (codes.amax(dim=0).clamp_min(0) + 1).tolist()
    per_level = read_num_codes(num_codes, codes.shape[1])
    codes = read_codes(codes, per_level)
    error = float("nan")
    if x_hat is not None:
        decoded = read_embeddings(x_hat, width=x.shape[1]).to(x)
        if len(decoded) != len(x):
            raise ValueError(f"x_hat must have {len(x)} rows as x has, got {len(decoded)}")
        error = float((x - decoded).square().sum(1).mean())
    width = max(per_level)
    level = torch.arange(len(per_level), device=codes.device)
    uses = torch.bincount((codes + level * width).flatten(), minlength=width * len(per_level))
    uses = uses.view(len(per_level), width)
    share = uses.double() / len(codes)
    _, path, count = codes.unique(dim=0, return_inverse=True, return_counts=True)
    return Quality(
        collision_rate=float((count[path] > 1).double().mean()),
        code_usage=(uses > 0).sum(1).double() / codes.new_tensor(per_level),
        entropy=-torch.xlogy(share, share).sum(1),
        path_similarity=_path_similarity(x, path, count),
        reconstruction_error=error,
    )


def _path_similarity(x: Tensor, path: Tensor, count: Tensor) -> float:
    """Return the mean over shared paths of the mean of u_i . u_j, i != j, u rows at length one."""
    # the sum over all pairs is |sum of u|^2 without its diagonal, so no pair is formed
    shared = count > 1
    if not shared.any():
        return float("nan")
    length = x.norm(dim=1, keepdim=True)
    unit = torch.where(length > 0, x / length, 0.0)
    total = x.new_zeros(len(count), x.shape[1]).index_add(0, path, unit)
    diagonal = x.new_zeros(len(count)).index_add(0, path, unit.square().sum(1))
    pairs = count * (count - 1)
    return float(((total.square().sum(1) - diagonal)[shared] / pairs[shared]).mean())
