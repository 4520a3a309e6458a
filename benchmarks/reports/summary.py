"""The summary of a run: every metric over its seeds."""

import pandas as pd

from benchmarks.reports.statistics import bootstrap
from benchmarks.runs.results import BOOTSTRAP_SEED, KEY, final_values

_GROUP = [name for name in KEY if name not in ("seed", "step")]
SUMMARY_COLUMNS = [*_GROUP, "num_seeds", "iqm", "ci_low", "ci_high"]


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """Return interquartile mean and 95 % interval over seeds of every final value.

    With one seed the interval is empty (NaN).
    """
    rows = []
    groups = final_values(results).groupby(_GROUP, sort=False)["value"]
    for key, values in groups:
        found = bootstrap(values.to_numpy(), BOOTSTRAP_SEED)
        rows.append((*key, len(values), found.value, found.low, found.high))
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)
