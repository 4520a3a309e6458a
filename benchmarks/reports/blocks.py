"""One HTML file that opens offline, and the same tables on a terminal.

A suite hands over a `SuiteReport` of plain blocks; how they look is decided here and in
`templates/report.html.j2`.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from benchmarks.reports.reading import Difference, reading
from benchmarks.reports.statistics import Interval
from benchmarks.runs.files import to_plain, write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

Cell = str | int | float | Interval | None
SIGNIFICANT = 3
UNBOUNDED = 10_000
ABSENT = "\N{EN DASH}"


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows of cells. An `Interval` is shown with its bounds, None as a dash."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class KeyValues:
    """Settings: nested mappings are shown with dotted names."""

    title: str
    values: Mapping[str, object]


@dataclass(frozen=True)
class Figure:
    """A matplotlib figure; `name` becomes figures/name.png and figures/name.svg."""

    name: str
    caption: str
    canvas: "Canvas"


Block = Paragraph | Bullets | Table | KeyValues | Figure


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, kw_only=True)
class SuiteReport:
    """What a suite has to say about its results."""

    title: str
    lead: str
    """What was compared, and on what, in a few sentences."""
    sections: Sequence[Section]
    tables: Sequence[Table]
    """Printed on the terminal; also shown first in the HTML file."""
    differences: Sequence[Difference] = field(default_factory=tuple)
    """Turned into sentences; the reading is never written beforehand."""
    how_to_read: Sequence[str] = ()
    """In the place of what the page says about means and intervals over seeds."""


def format_number(value: float, decimals: int) -> str:
    """Return a number with a fixed count of decimals, in e-notation where it is extreme."""
    if not math.isfinite(value):
        return ABSENT
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.2e}"
    return f"{value:,.{decimals}f}"


def format_column(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """Return (value, interval) texts of one column; all its numbers get one count of decimals."""
    sizes = [abs(n) for cell in cells for n in _numbers(cell) if n and math.isfinite(n)]
    decimals = 0
    if sizes and any(isinstance(cell, float | Interval) for cell in cells):
        decimals = min(max(SIGNIFICANT - 1 - math.floor(math.log10(max(sizes))), 0), 6)
    texts = []
    for cell in cells:
        if cell is None:
            texts.append((ABSENT, ""))
        elif isinstance(cell, str):
            texts.append((cell, ""))
        elif isinstance(cell, Interval):
            bounds = ""
            if math.isfinite(cell.low) and math.isfinite(cell.high):
                low, high = (format_number(b, decimals) for b in (cell.low, cell.high))
                bounds = f"[{low}, {high}]"
            texts.append((format_number(cell.value, decimals), bounds))
        else:
            texts.append((format_number(cell, 0 if isinstance(cell, int) else decimals), ""))
    return texts


def _numbers(cell: Cell) -> list[float]:
    if isinstance(cell, Interval):
        return [cell.value, cell.low, cell.high]
    return [float(cell)] if isinstance(cell, int | float) else []


def _columns(table: Table) -> list[list[tuple[str, str]]]:
    return [format_column([row[i] for row in table.rows]) for i in range(len(table.columns))]


def _is_number_column(table: Table, index: int) -> bool:
    return any(isinstance(row[index], int | float | Interval) for row in table.rows)


def print_tables(tables: Sequence[Table], console: Console) -> None:
    """Print tables; without colours or control codes unless the console is a terminal.

    Intervals stand beside their values, or below them where the console is too narrow.
    """
    for table in tables:
        shown = _console_table(table, " ")
        unbounded = console.options.update(width=UNBOUNDED)
        if console.measure(shown, options=unbounded).maximum > console.width:
            shown = _console_table(table, "\n")
        console.print(shown)


def _console_table(table: Table, separator: str) -> RichTable:
    shown = RichTable(
        title=escape(table.title),
        title_justify="left",
        box=box.SIMPLE,
        caption=escape(table.note) or None,
        caption_justify="left",
    )
    for index, name in enumerate(table.columns):
        numbers = _is_number_column(table, index)
        shown.add_column(
            escape(name),
            justify="right" if numbers else "left",
            overflow="fold",
            no_wrap=index == 0,
        )
    for row in zip(*_columns(table), strict=True):
        shown.add_row(*[escape(f"{value}{separator}{bounds}".rstrip()) for value, bounds in row])
    return shown


def flatten(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Return (dotted name, text) pairs of nested settings."""
    pairs = []
    for name, value in to_plain(values).items():
        if isinstance(value, Mapping) and value:
            pairs += flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            pairs.append((prefix + name, ", ".join(str(v) for v in value) or ABSENT))
        else:
            pairs.append((prefix + name, ABSENT if value is None else str(value)))
    return pairs


def render_figure(canvas: "Canvas", kind: str) -> bytes:
    """Return a figure as `png` or `svg`; the same figure gives the same bytes."""
    import matplotlib

    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "gpr_rl"}):
        canvas.savefig(buffer, format=kind, dpi=160, metadata=metadata, bbox_inches="tight")
    return buffer.getvalue()


def write_report(
    out: Path, report: SuiteReport, settings: Mapping[str, object], about: Mapping[str, object]
) -> Path:
    """Write report.html and figures/ of a run and return the page's path.

    Args:
        out: The run's folder.
        report: What the suite made.
        settings: Of the run.
        about: Versions, commit and platform.
    """
    images: dict[str, str] = {}
    for section in report.sections:
        for block in section.blocks:
            if isinstance(block, Figure):
                for kind in ("png", "svg"):
                    content = render_figure(block.canvas, kind)
                    write_bytes(out / "figures" / f"{block.name}.{kind}", content)
                images[block.name] = base64.b64encode(content).decode()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _code_marks
    environment.globals.update(
        kind=lambda block: type(block).__name__,
        columns=_columns,
        is_number=_is_number_column,
        flatten=flatten,
        images=images,
    )
    page = environment.get_template("report.html.j2").render(
        report=report,
        reading=reading(report.differences),
        appendix=[KeyValues("Settings", settings), KeyValues("Versions", about)],
    )
    path = out / "report.html"
    write_text(path, page)
    return path


def _code_marks(text: str) -> Markup:
    """Return escaped text whose `marked` words are set in code type."""
    parts = text.split("`")
    marked = [Markup("<code>{}</code>").format(p) if i % 2 else p for i, p in enumerate(parts)]
    return Markup("").join(marked)
