"""Looking values up in a results table: the one way from rows to a report's cell."""

import pandas as pd

from benchmarks.reports.statistics import Interval, bootstrap
from benchmarks.runs.results import BOOTSTRAP_SEED

TEST = "test"
"""The split of what a report compares."""


def values_of(
    results: pd.DataFrame, method: str, metric: str, split: str | None = None
) -> pd.Series:
    """Return the values of a row on a metric; of all splits unless one is named."""
    wanted = (results["method"] == method) & (results["metric"] == metric)
    if split is not None:
        wanted &= results["split"] == split
    return results.loc[wanted, "value"]


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
