"""A suite's report as Markdown with its figures beside it, to be kept in a repository."""

import io
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reports.blocks import (
    Block,
    Bullets,
    Cell,
    Figure,
    KeyValues,
    Paragraph,
    SuiteReport,
    Table,
    flatten,
    format_column,
)
from benchmarks.reports.reading import reading
from benchmarks.runs.files import write_bytes, write_text

DPI = 130


def write_markdown(
    folder: Path, name: str, report: SuiteReport, command: str, made_with: Sequence[str]
) -> Path:
    """Write `folder/NAME.md` and `folder/NAME/*.png`; return the page's path.

    Args:
        folder: Made if it is not there.
        name: Of the page and of its figures' folder.
        report: What the page says.
        command: What makes the run again.
        made_with: Versions, machine and commit, a line each.
    """
    figures = folder / name
    figures.mkdir(parents=True, exist_ok=True)
    parts = [f"# {report.title}", report.lead, f"```\n{command}\n```"]
    words = reading(report.differences)
    if words:
        parts += ["## What the numbers say", _bullets(words)]
    parts += [_table(table) for table in report.tables]
    for section in report.sections:
        parts.append(f"## {section.title}")
        parts += [_block(block, figures) for block in section.blocks]
    parts += ["## Made with", _bullets(made_with)]
    path = folder / f"{name}.md"
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def _block(block: Block, figures: Path) -> str:
    if isinstance(block, Paragraph):
        return block.text
    if isinstance(block, Bullets):
        return _bullets(block.items)
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, KeyValues):
        rows: list[list[Cell]] = [[name, text] for name, text in flatten(block.values)]
        return _table(Table(block.title, ["setting", "value"], rows))
    assert isinstance(block, Figure)
    content = io.BytesIO()
    block.canvas.savefig(content, format="png", dpi=DPI, bbox_inches="tight")
    write_bytes(figures / f"{block.name}.png", content.getvalue())
    return f"![{block.caption}]({figures.name}/{block.name}.png)\n\n*{block.caption}*"


def _bullets(items: Sequence[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _table(table: Table) -> str:
    columns = [
        [" ".join(part for part in text if part) for text in format_column(list(cells))]
        for cells in zip(*table.rows, strict=True)
    ]
    lines = [f"**{table.title}**", "", _line(table.columns), _line(["---"] * len(table.columns))]
    lines += [_line(cells) for cells in zip(*columns, strict=True)]
    if table.note:
        lines += ["", table.note]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
