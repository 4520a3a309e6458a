"""How good a fitted tokenizer is on its rows, and what is wrong with it in plain words.

Dims: n rows, d embedding width, L levels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gpr_rl.tokenizers.quality import Quality, quality

NUM_LARGEST = 10
_NUM_NAMES = 5


@dataclass(frozen=True, kw_only=True)
class Collision:
    """Items that share a path."""

    path: tuple[int, ...]
    rows: tuple[int, ...]
    similarity: float
    """Mean pairwise cosine similarity of their embeddings."""
    names: tuple[str, ...]
    """Of the first few."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What the report of a tokenizer says."""

    num_codes: tuple[int, ...]
    parts: dict[str, tuple[int, Quality]]
    """`all`, `train` and `held out`: number of rows and quality; without a hold-out only `all`."""
    twins: float
    """Share of rows whose embedding another row has too: content can't tell them apart."""
    children: tuple[float, ...]
    """Mean number of different codes that follow a prefix in use, per level."""
    counts: tuple[Int[Tensor, " _"], ...]
    """Rows per code of each level."""
    largest: tuple[Collision, ...]
    """The ten paths with the most items."""
    verdict: tuple[str, ...]
    """Sentences; empty: nothing wrong was found."""


def study_codes(
    codes: Int[Tensor, "n L"],
    x: Float[Tensor, "n d"],
    x_hat: Float[Tensor, "n d"],
    num_codes: Sequence[int],
    held_out: Bool[Tensor, " n"],
    names: Sequence[str] | None = None,
) -> Study:
    """Return the study of a coding.

    Args:
        codes: int64 [n, L], n >= 1.
        x: float32 [n, d].
        x_hat: float32 [n, d], decoded.
        num_codes: Codes per level.
        held_out: Rows that the fit did not see.
        names: One per row, for the largest collisions.

    Raises:
        ValueError: Names of another number than rows.
    """
    if names is not None and len(names) != len(x):
        raise ValueError(f"there are {len(names)} names for {len(x)} rows")
    splits = {"all": torch.ones_like(held_out)}
    if held_out.any() and not held_out.all():
        splits |= {"train": ~held_out, "held out": held_out}
    parts = {
        name: (int(mask.sum()), quality(codes[mask], x[mask], num_codes, x_hat[mask]))
        for name, mask in splits.items()
    }
    _, twin, count = x.unique(dim=0, return_inverse=True, return_counts=True)
    twins = float((count[twin] > 1).double().mean())
    children = _children(codes)
    counts = tuple(
        torch.bincount(column, minlength=size)
        for column, size in zip(codes.T, num_codes, strict=True)
    )
    return Study(
        num_codes=tuple(num_codes),
        parts=parts,
        twins=twins,
        children=children,
        counts=counts,
        largest=_largest(codes, x, names),
        verdict=tuple(judge(parts, tuple(num_codes), twins, children)),
    )


def judge(
    parts: dict[str, tuple[int, Quality]],
    num_codes: tuple[int, ...],
    twins: float,
    children: tuple[float, ...],
) -> list[str]:
    """Return what is wrong, a sentence each."""
    num_rows, whole = parts["all"]
    found = []
    for level, size in enumerate(num_codes):
        used = round(float(whole.code_usage[level]) * size)
        effective = math.exp(float(whole.entropy[level]))
        where = f"Level {level + 1}"
        if size > 1 and effective < 0.1 * min(size, num_rows):
            found.append(
                f"{where} has collapsed: its {size} codes tell apart no more than {effective:.1f} "
                "equally frequent ones would."
            )
        elif used < 0.9 * min(size, num_rows):
            found.append(f"{where} has {size - used} dead codes of {size}.")
    before_last = math.prod(num_codes[:-1])
    if len(num_codes) > 1 and before_last > num_rows:
        found.append(
            f"More paths than items: the first {len(num_codes) - 1} levels have {before_last:,} "
            f"paths for {num_rows:,} items, and {children[-1]:.1f} codes follow at the last "
            "level, where little is left to decide. Fewer codes or levels would do."
        )
    if whole.collision_rate > max(0.2, 2 * twins):
        found.append(
            f"{whole.collision_rate:.0%} of the items share their path with another one: more "
            "codes, a further level, or business keys (ua_sid) would tell them apart."
        )
    if twins > 0.01:
        found.append(
            f"{twins:.1%} of the items have the same embedding as another one; no code of the "
            "content can tell those apart."
        )
    if "held out" in parts:
        train, held_out = (parts[name][1].reconstruction_error for name in ("train", "held out"))
        if held_out > 1.5 * train:
            found.append(
                f"New items fit worse: the reconstruction error is {held_out:.3g} on held-out "
                f"rows and {train:.3g} on those of the fit."
            )
    return found


def _children(codes: Tensor) -> tuple[float, ...]:
    paths = [1] + [len(codes[:, : level + 1].unique(dim=0)) for level in range(codes.shape[1])]
    return tuple(after / before for before, after in pairwise(paths))


def _largest(codes: Tensor, x: Tensor, names: Sequence[str] | None) -> tuple[Collision, ...]:
    paths, path, count = codes.unique(dim=0, return_inverse=True, return_counts=True)
    found = []
    for number in count.argsort(descending=True, stable=True)[:NUM_LARGEST].tolist():
        if count[number] < 2:
            break
        rows = (path == number).nonzero()[:, 0].tolist()
        inside = quality(codes[rows], x[rows]).path_similarity
        shown = () if names is None else tuple(str(names[row]) for row in rows[:_NUM_NAMES])
        found.append(
            Collision(
                path=tuple(paths[number].tolist()),
                rows=tuple(rows),
                similarity=inside,
                names=shown,
            )
        )
    return tuple(found)
