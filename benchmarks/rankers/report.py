"""What the rankers suite says: cards, reliability diagrams, and whether optimising them helps."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from benchmarks.reports.blocks import (
    Block,
    Bullets,
    Cell,
    Figure,
    Section,
    SuiteReport,
    Table,
)
from benchmarks.reports.cards import CARD_COLUMNS, card_row, group_table
from benchmarks.reports.figures import COLOURS, plain_axes
from benchmarks.reports.lookup import interval_cells
from benchmarks.reports.reading import Difference, compare
from benchmarks.runs.results import under
from benchmarks.worlds import world_words
from simulators.rankers.cards import OVERALL
from simulators.world.info import WorldInfo

TASKS = ("pctr", "pcvr")
TRUTH = "truth"


def overall_table(results: pd.DataFrame, methods: Sequence[str]) -> Table:
    """Return both tasks' grades over all held-out rows, the truth's own among them."""
    rows: list[list[Cell]] = []
    for task in TASKS:
        for method in methods:
            grades = card_row(results, task, OVERALL, method, "")
            if grades[-1] is not None:
                rows.append([f"{task}, {method}", *grades])
        truth = card_row(results, task, OVERALL, methods[0], "_oracle")
        if truth[0] is not None or truth[1] is not None:
            rows.append([f"{task}, {TRUTH}", *truth])
    return Table(
        "Frozen rankers on held-out days",
        ["", *CARD_COLUMNS],
        rows,
        f"`{TRUTH}`: the hidden probabilities themselves, graded on the same rows; no ranker can "
        "expect more, and its ECE is what chance alone leaves. Of a conversion only clicks are "
        "trials. Over the worlds used, with 95 % intervals.",
    )


def reliability_figure(results: pd.DataFrame, task: str, methods: Sequence[str]) -> Canvas:
    """Return observed rate over mean prediction per bin, means over seeds, on log axes."""
    figure, axes = plain_axes(0.7)
    ends: list[float] = []
    for method, colour in zip(methods, COLOURS, strict=False):
        rows = results[(results["method"] == method) & (results["task"] == task)]
        rows = rows[rows["bin"] > 0]
        if rows.empty:
            continue
        points = rows.pivot_table("value", "bin", "metric")  # means over seeds
        shown = points[(points["observed"] > 0) & (points["predicted"] > 0)]
        x, y = shown["predicted"].to_numpy(), shown["observed"].to_numpy()
        axes.plot(x, y, "o-", color=colour, label=method, linewidth=1.4, markersize=4.5)
        ends += [*x, *y]
    if ends:
        line = np.array([min(ends), max(ends)])
        axes.plot(line, line, ":", color="#555555", linewidth=1.2, label="calibrated")
        axes.legend(loc="upper left", frameon=False)
    axes.set(xscale="log", yscale="log", xlabel=f"mean {task} of the bin", ylabel="observed rate")
    return figure


def regime_table(results: pd.DataFrame, methods: Sequence[str]) -> Table | None:
    """Return what optimising each method's rankers is worth under the truth."""
    columns = {
        "logging policy": "regime/logging",
        "the rankers' best ad": "regime/proxy_argmax",
        "truly best ad": "regime/best",
        "share of the possible gain": "regime/share",
        "scores per second": "scores_per_s",
    }
    rows = [[m, *interval_cells(results, m, columns.values())] for m in methods]
    if all(row[4] is None for row in rows):
        columns = {"scores per second": "scores_per_s"}
        rows = [[row[0], row[-1]] for row in rows]
    return Table(
        "What optimising them is worth",
        ["", *columns],
        rows,
        "True final value per request on 300 held-out requests. The share is that of the way from "
        "the logging policy (0) to the truly best ad (1) that the ad with the largest reward goes; "
        "below 0, optimising the rankers is reward hacking. alpha of Eq. 5 is each method's own. "
        "Scores per second: 64 requests with 40 candidates, one thread.",
    )


def _differences(results: pd.DataFrame, methods: Sequence[str]) -> list[Difference]:
    first, *others = methods
    found: list[Difference] = []
    for task, words in (("pctr", "the AUC of pCTR"), ("pcvr", "the AUC of pCVR")):
        found += compare(under(results, task=task, group=OVERALL), "auc", words, others, first)
    words = "the share of the possible gain of the rankers' best ad"
    return found + compare(results, "regime/share", words, others, first)


def make_report(
    results: pd.DataFrame, *, methods: Sequence[str], info: WorldInfo, seeds: Sequence[int]
) -> SuiteReport:
    """Return the report of all rows of a run; `info` is of the first seed's world."""
    names = {"pctr": "Clicks", "pcvr": "Conversions"}
    sections = []
    for task in TASKS:
        tables = [table for m in methods if (table := group_table(results, task, m)) is not None]
        if not tables:
            continue
        figure = Figure(
            f"reliability_{task}",
            f"Reliability of {task}: bins of equally many held-out rows, means over the worlds; "
            "bins without a positive are left out.",
            reliability_figure(results, task, methods),
        )
        blocks: list[Block] = [figure, *tables]
        sections.append(Section(names[task], blocks))
    days = f"the {info.num_days - info.num_log_days} days after the log"
    facts = [
        f"Fitted on all logged days but the last, calibrated on the last by centred isotonic "
        f"regression, graded on {days}, which nothing was fitted on.",
        "ECE: mean |predicted - observed rate| over 20 bins of equally many rows.",
        "`lightgbm` is `examples/lightgbm_rankers.py`, plugged in as a user's rankers are.",
    ]
    regime = regime_table(results, methods)
    truth = ", with a known truth" if info.has_truth else ", without a known truth"
    return SuiteReport(
        title="The frozen rankers",
        lead=f"{', '.join(methods)} as reward simulator; {len(seeds)} seeds. "
        f"{world_words(info, truth)}" + " ".join(info.notes),
        sections=[*sections, Section("How they were graded", [Bullets(facts)])],
        tables=[overall_table(results, methods), *([regime] if regime else [])],
        differences=_differences(results, methods),
    )
