"""The summary of a run: every metric over its seeds."""

import pandas as pd

from benchmarks.reports.statistics import bootstrap
from benchmarks.runs.results import BOOTSTRAP_SEED, final_values

SUMMARY_COLUMNS = ["suite", "method", "split", "metric", "num_seeds", "iqm", "ci_low", "ci_high"]


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """Return interquartile mean and 95 % interval over seeds of every final value.

    With one seed the interval is empty (NaN).
    """
    rows = []
    groups = final_values(results).groupby(SUMMARY_COLUMNS[:4], sort=False)["value"]
    for key, values in groups:
        found = bootstrap(values.to_numpy(), BOOTSTRAP_SEED)
        rows.append((*key, len(values), found.value, found.low, found.high))
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)
