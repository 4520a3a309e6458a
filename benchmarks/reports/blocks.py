"""What a report is made of, and its tables on a terminal.

A suite hands over a `SuiteReport` of plain blocks; how they look on a page is decided in
`benchmarks.reports.markdown`.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from benchmarks.reports.reading import Difference
from benchmarks.reports.statistics import Interval
from benchmarks.runs.files import flat, to_plain

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
class Figure:
    """A matplotlib figure; `name` becomes figures/name.png and figures/name.svg."""

    name: str
    caption: str
    canvas: "Canvas"


Block = Paragraph | Bullets | Table | Figure


def present(*blocks: Block | None) -> list[Block]:
    """Return the blocks that there is something to say in."""
    return [block for block in blocks if block is not None]


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
    """Printed on the terminal; also shown first on the page."""
    differences: Sequence[Difference] = field(default_factory=tuple)
    """Turned into sentences; the reading is never written beforehand."""
    answer: str = ""
    """The suite's question answered in a few computed sentences, first on page and terminal."""
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
            value, low, high = (format_number(x, decimals) for x in astuple(cell))
            texts.append((value, f"[{low}, {high}]" if cell.has_bounds else ""))
        else:
            texts.append((format_number(cell, 0 if isinstance(cell, int) else decimals), ""))
    return texts


def _numbers(cell: Cell) -> Sequence[float]:
    if isinstance(cell, Interval):
        return astuple(cell)
    return [float(cell)] if isinstance(cell, int | float) else []


def columns_of(table: Table) -> list[list[tuple[str, str]]]:
    """Return `format_column` of every column."""
    return [format_column([row[i] for row in table.rows]) for i in range(len(table.columns))]


def is_number_column(table: Table, index: int) -> bool:
    """Return whether a column has a number in it."""
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
        numbers = is_number_column(table, index)
        shown.add_column(
            escape(name),
            justify="right" if numbers else "left",
            overflow="fold",
            no_wrap=index == 0,
        )
    for row in zip(*columns_of(table), strict=True):
        shown.add_row(*[escape(f"{value}{separator}{bounds}".rstrip()) for value, bounds in row])
    return shown


def key_values(title: str, values: Mapping[str, object]) -> Table:
    """Return a table of settings: nested mappings are shown with dotted names."""

    def text(value: object) -> str:
        if isinstance(value, list):
            return ", ".join(str(v) for v in value) or ABSENT
        return ABSENT if value is None else str(value)

    rows = [[name, text(value)] for name, value in flat(to_plain(values))]
    return Table(title, ["setting", "value"], rows)


def render_figure(canvas: "Canvas", kind: str) -> bytes:
    """Return a figure as `png` or `svg`; the same figure gives the same bytes."""
    import matplotlib

    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "gpr_rl"}):
        canvas.savefig(buffer, format=kind, dpi=160, metadata=metadata, bbox_inches="tight")
    return buffer.getvalue()
