"""A suite's report as Markdown: the one text that both its pages are made from."""

import io
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reports.blocks import (
    Block,
    Bullets,
    Figure,
    Paragraph,
    Section,
    SuiteReport,
    Table,
    columns_of,
    is_number_column,
)
from benchmarks.reports.reading import reading
from benchmarks.runs.files import write_bytes, write_text
from gpr_rl.page import escape, table

DPI = 130


def report_text(
    report: SuiteReport, figures: str, kind: str, end: Sequence[Section], command: str = ""
) -> str:
    """Return a report as Markdown, `end` after the report's own sections.

    `figures` is their folder as seen from the page, `kind` `png` or `svg`. An empty `command` is
    left out.
    """
    parts = [f"# {escape(report.title)}", escape(report.answer), escape(report.lead)]
    parts += [f"```\n{command}\n```"] if command else []
    words = reading(report.differences)
    if words:
        parts += ["## What the numbers say", _bullets(words)]
    parts += [_table(block) for block in report.tables]
    for section in (*report.sections, *end):
        parts.append(f"## {escape(section.title)}")
        parts += [_block(block, figures, kind) for block in section.blocks]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_markdown(
    folder: Path, name: str, report: SuiteReport, command: str, made_with: Sequence[str]
) -> Path:
    """Write `folder/NAME.md` and `folder/NAME/*.png`; return the page's path.

    `made_with` are versions, machine and commit, a line each.
    """
    (folder / name).mkdir(parents=True, exist_ok=True)
    for figure in figures_of(report):
        content = io.BytesIO()
        figure.canvas.savefig(content, format="png", dpi=DPI, bbox_inches="tight")
        write_bytes(folder / name / f"{figure.name}.png", content.getvalue())
    end = [Section("Made with", [Bullets(made_with)])]
    path = folder / f"{name}.md"
    write_text(path, report_text(report, name, "png", end, command))
    return path


def figures_of(report: SuiteReport) -> list[Figure]:
    """Return all figures of a report."""
    blocks = [block for section in report.sections for block in section.blocks]
    return [block for block in blocks if isinstance(block, Figure)]


def _block(block: Block, figures: str, kind: str) -> str:
    if isinstance(block, Paragraph):
        return escape(block.text)
    if isinstance(block, Bullets):
        return _bullets(block.items)
    if isinstance(block, Table):
        return _table(block)
    assert isinstance(block, Figure)
    caption = escape(block.caption)
    return f"![{caption}]({figures}/{block.name}.{kind})\n\n*{caption}*"


def _bullets(items: Sequence[str]) -> str:
    return "\n".join(f"- {escape(item)}" for item in items)


def _table(block: Table) -> str:
    rows = [
        [" ".join(part for part in text if part) for text in row]
        for row in zip(*columns_of(block), strict=True)
    ]
    numbers = [is_number_column(block, index) for index in range(len(block.columns))]
    text = table(block.columns, rows, numbers)
    title = f"**{escape(block.title)}**\n\n" if block.title else ""
    return title + text + (f"\n\n{escape(block.note)}" if block.note else "")
