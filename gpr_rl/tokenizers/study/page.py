"""The report of a tokenizer as one HTML page that opens offline."""

import io
import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from gpr_rl.files import write_text
from gpr_rl.page import escape, html_page, svg_uri, table
from gpr_rl.tokenizers.study.study import Study

_USAGE = "usage.svg"


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
