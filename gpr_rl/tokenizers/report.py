"""The report on one tokenizer's codes: how good they are, what is wrong with them, as a page.

Dims: n rows, d embedding width, L levels.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from gpr_rl.files import write_text
from gpr_rl.page import escape, html_page, svg_uri, table
from gpr_rl.tokenizers.quality import Quality, quality

NUM_LARGEST = 10
_NUM_NAMES = 5
_USAGE = "usage.svg"


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
    """Return the study of a coding of n >= 1 rows, `x_hat` decoded from it.

    The fit did not see the rows `held_out`; `names`, one per row, are for the largest collisions.

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


def write_page(path: Path, title: str, study: Study, settings: Mapping[str, object]) -> None:
    """Write the report of a study; settings are shown as they are."""
    parts = [f"# {escape(title)}", "## Verdict"]
    parts.append(
        "\n".join(f"- {escape(line)}" for line in study.verdict) or "Nothing wrong was found."
    )
    parts += [
        "## Quality",
        _quality(study),
        "Collision rate: share of items whose whole path another item of the same line has too. "
        "Path similarity: mean cosine similarity of the items of a shared path. Reconstruction "
        "error: mean squared distance of an embedding and what its codes decode to. "
        f"{100 * study.twins:.2f} % of the rows have the embedding of another row.",
        "## Levels",
        _levels(study),
        f"![Items per code of every level, sorted]({_USAGE})",
        "## Largest collisions",
        _collisions(study) if study.largest else "No two items share a path.",
        "## Made with",
        table(
            ["setting", "value"],
            [[name, str(value)] for name, value in settings.items()],
            [False, False],
        ),
    ]
    text = html_page(title, "\n\n".join(parts) + "\n", {_USAGE: svg_uri(_usage_figure(study))})
    write_text(path, text)


def _quality(study: Study) -> str:
    rows = [
        [
            name,
            f"{number:,}",
            f"{quality.collision_rate:.4f}",
            _number(quality.path_similarity),
            _number(quality.reconstruction_error),
        ]
        for name, (number, quality) in study.parts.items()
    ]
    columns = ["rows", "number", "collision rate", "path similarity", "reconstruction error"]
    return table(columns, rows, [False, True, True, True, True])


def _levels(study: Study) -> str:
    whole = study.parts["all"][1]
    rows = [
        [
            str(number + 1),
            str(size),
            f"{float(whole.code_usage[number]):.1%}",
            f"{float(whole.entropy[number]):.3f}",
            f"{math.log(size):.3f}",
            f"{study.children[number]:.1f}",
        ]
        for number, size in enumerate(study.num_codes)
    ]
    columns = ["level", "codes", "in use", "entropy (nats)", "at most", "codes after a prefix"]
    return table(columns, rows, [False, True, True, True, True, True])


def _collisions(study: Study) -> str:
    is_named = any(collision.names for collision in study.largest)
    rows = []
    for collision in study.largest:
        row = [
            f"`{'-'.join(str(code) for code in collision.path)}`",
            str(len(collision.rows)),
            _number(collision.similarity),
            ", ".join(str(number) for number in collision.rows[:5]),
        ]
        rows.append([*row, " \u00b7 ".join(collision.names)] if is_named else row)
    columns = ["path", "items", "similarity", "first rows", "names"][: len(rows[0])]
    return table(columns, rows, [False, True, True, True, False][: len(columns)])


def _number(value: float) -> str:
    return "\N{EN DASH}" if math.isnan(value) else f"{value:.4g}"


def _usage_figure(study: Study) -> bytes:
    figure = Figure(figsize=(8.0, 2.6), layout="constrained")
    axes = figure.subplots(1, len(study.counts), squeeze=False)[0]
    for level, (axis, count) in enumerate(zip(axes, study.counts, strict=True)):
        ordered = count.sort(descending=True).values.numpy()
        axis.fill_between(range(len(ordered)), ordered, step="pre", color="#0072b2")
        axis.axhline(ordered.mean(), color="#d55e00", linewidth=1, linestyle="--")
        axis.set_title(f"level {level + 1}", fontsize=10)
        axis.set_xlabel("code, most items first", fontsize=9)
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("items", fontsize=9)
    content = io.BytesIO()
    figure.savefig(content, format="svg")
    return content.getvalue()
