"""A run's report as one HTML file that opens offline, with its figures beside it."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.reports.blocks import (
    Bullets,
    Section,
    SuiteReport,
    key_values,
    render_figure,
)
from benchmarks.reports.markdown import figures_of, report_text
from benchmarks.runs.files import write_bytes, write_text
from gpr_rl.page import html_page, svg_uri

HOW_TO_READ = (
    "A number is the interquartile mean over seeds (the mean of the middle half; up to 3 seeds "
    "that is the plain mean). The brackets are its 95 % bootstrap interval.",
    "Methods are compared inside a seed: differences are taken per seed first and resampled "
    "after, so what the methods of a seed have in common cancels. Two overlapping intervals in a "
    "table say little; the interval of the difference decides.",
    "\N{LEFT DOUBLE QUOTATION MARK}Improved\N{RIGHT DOUBLE QUOTATION MARK} and "
    "\N{LEFT DOUBLE QUOTATION MARK}lowered\N{RIGHT DOUBLE QUOTATION MARK} are written only where "
    "the whole interval of the difference lies on one side of zero and, of several comparisons on "
    "one measure, where the p-value corrected for their number (Holm) is below .05 too, if that "
    "is possible with so few seeds; otherwise there is no clear difference, which is not the same "
    "as equality.",
    "A nominal 95 % interval covers 75 to 89 % at 3 seeds, about 90 % at 5 and 93 to 94 % at 10. "
    "Below 3 seeds no verdict is given.",
)


def write_report(
    out: Path, report: SuiteReport, settings: Mapping[str, object], about: Mapping[str, object]
) -> Path:
    """Write report.html and figures/ of a run and return the page's path.

    `about` are versions, commit and platform.
    """
    images: dict[str, str] = {}
    for figure in figures_of(report):
        for kind in ("png", "svg"):
            content = render_figure(figure.canvas, kind)
            write_bytes(out / "figures" / f"{figure.name}.{kind}", content)
        images[f"figures/{figure.name}.svg"] = svg_uri(content)
    how = report.how_to_read or HOW_TO_READ
    last = "Every sentence above was computed from the numbers of this run."
    end = [
        Section("How to read this", [Bullets([*how, last])]),
        Section(
            "Settings and versions",
            [key_values("Settings", settings), key_values("Versions", about)],
        ),
    ]
    path = out / "report.html"
    write_text(path, html_page(report.title, report_text(report, "figures", "svg", end), images))
    return path
