"""Looking values up in a results table: from rows to a report's cell, and to the summary."""

from collections.abc import Iterable, Mapping
from dataclasses import astuple

import pandas as pd

from benchmarks.reports.blocks import Cell, Table
from benchmarks.reports.statistics import Interval, bootstrap
from benchmarks.runs.results import (
    BOOTSTRAP_SEED,
    KEY,
    final_values,
    under,
    without_conditions,
)

TEST = "test"
"""The split of what a report compares."""
_GROUP = [name for name in KEY if name not in ("seed", "step")]
SUMMARY_COLUMNS = [*_GROUP, "num_seeds", "iqm", "ci_low", "ci_high"]


def values_of(
    results: pd.DataFrame, method: str, metric: str, split: str | None = None
) -> pd.Series:
    """Return the values of a method on a metric; of all splits unless one is named.

    Only rows without conditions count: `benchmarks.runs.results.under` chooses those of some.
    """
    wanted = (results["method"] == method) & (results["metric"] == metric)
    if split is not None:
        wanted &= results["split"] == split
    return without_conditions(results[wanted])["value"]


def interval_of(
    results: pd.DataFrame, method: str, metric: str, split: str | None = None
) -> Interval | None:
    """Return the interquartile mean with its 95 % interval; None without rows."""
    values = values_of(results, method, metric, split).to_numpy()
    return bootstrap(values, BOOTSTRAP_SEED) if len(values) else None


def mean_of(
    results: pd.DataFrame, method: str, metric: str, split: str | None = None
) -> float | None:
    """Return the plain mean; None without rows."""
    values = values_of(results, method, metric, split)
    return float(values.mean()) if len(values) else None


def median_of(
    results: pd.DataFrame, method: str, metric: str, **conditions: str | int
) -> float | None:
    """Return the median over rounds (seeds) under some conditions; None without rows."""
    found = values_of(under(results, **conditions), method, metric)
    return float(found.median()) if len(found) else None


def repeats_of(
    results: pd.DataFrame, method: str, metric: str, **conditions: str | int
) -> Interval | None:
    """Return `median_of` with the slowest and the fastest repeat of all rounds; None without rows.

    Those are the metrics `slowest_METRIC` and `fastest_METRIC`.
    """
    middle = median_of(results, method, metric, **conditions)
    if middle is None:
        return None
    found = under(results, **conditions)
    ends = [values_of(found, method, f"{end}_{metric}") for end in ("slowest", "fastest")]
    both = pd.concat(ends)
    return Interval(middle, float(both.min()), float(both.max()))


def interval_cells(
    results: pd.DataFrame, method: str, metrics: Iterable[str], split: str | None = None
) -> list[Cell]:
    """Return the intervals of a method on some metrics, None where it has no rows."""
    return [interval_of(results, method, metric, split) for metric in metrics]


def interval_table(
    results: pd.DataFrame,
    title: str,
    methods: Iterable[str],
    columns: Mapping[str, str],
    note: str = "",
    *,
    first: str = "method",
) -> Table:
    """Return a row per method and a column per metric; empty rows and columns are left out.

    `columns` are headings and their metrics; rows of split `TEST` without conditions count.
    """
    cells = {method: interval_cells(results, method, columns.values(), TEST) for method in methods}
    shown = {method: row for method, row in cells.items() if any(c is not None for c in row)}
    kept = [i for i in range(len(columns)) if any(row[i] is not None for row in shown.values())]
    names = list(columns)
    rows = [[method, *(row[i] for i in kept)] for method, row in shown.items()]
    return Table(title, [first, *(names[i] for i in kept)], rows, note)


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """Return interquartile mean and 95 % interval over seeds of every final value.

    With one seed the interval is empty (NaN).
    """
    rows = []
    groups = final_values(results).groupby(_GROUP, sort=False)["value"]
    for key, values in groups:
        found = bootstrap(values.to_numpy(), BOOTSTRAP_SEED)
        rows.append((*key, len(values), *astuple(found)))
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)
