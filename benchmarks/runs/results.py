"""The tidy table of a run: one finite value per row.

Columns: suite, method (lower case), seed, step, split, metric, value. What does not apply has no
row. A metric of time ends in `_s`, `_ms` or `_per_s` and is outside the promise of equal numbers.
"""

import io
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.errors import UserError
from benchmarks.runs.files import write_bytes

DTYPES = {
    "suite": "str",
    "method": "str",
    "seed": "int64",
    "step": "int64",
    "split": "str",
    "metric": "str",
    "value": "float64",
}
COLUMNS = list(DTYPES)
KEY = COLUMNS[:-1]
BOOTSTRAP_SEED = 20_250
"""Of every interval in a report: resampling is not part of what `--seeds` varies."""


def empty_results() -> pd.DataFrame:
    """Return a table without rows."""
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in DTYPES.items()})


def tidy(
    suite: str,
    method: str,
    seed: int,
    metrics: Mapping[str, float],
    *,
    step: int = 0,
    split: str = "test",
) -> pd.DataFrame:
    """Return the rows of one (method, seed, step, split), a row per metric.

    Nothing is left out: a value that is not finite is refused when the run's table is checked.
    """
    frame = pd.DataFrame({"metric": list(metrics), "value": [float(v) for v in metrics.values()]})
    frame = frame.assign(suite=suite, method=method, seed=seed, step=step, split=split)
    return frame[COLUMNS].astype(DTYPES)


def applicable(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that apply: what is not finite has no row."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def check_results(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """Return the table with exactly the tidy columns and types.

    Raises:
        ValueError: Columns are missing or superfluous, a value is not finite, or two rows have one
            key; the message names `source` and the row.
    """
    if sorted(table.columns) != sorted(COLUMNS):
        raise ValueError(f"{source}: columns must be {COLUMNS}, got {list(table.columns)}")
    table = table[COLUMNS].astype(DTYPES).reset_index(drop=True)
    infinite = ~np.isfinite(table["value"])
    if infinite.any():
        row = table[infinite].iloc[0]
        raise ValueError(
            f"{source}: {row['metric']!r} of {row['method']!r}, seed {row['seed']}, step "
            f"{row['step']}, is {row['value']}; what does not apply must have no row"
        )
    repeated = table.duplicated(KEY)
    if repeated.any():
        raise ValueError(f"{source}: two rows for {table.loc[repeated, KEY].iloc[0].to_dict()}")
    return table


def write_results(path: Path, table: pd.DataFrame) -> None:
    """Write a tidy table as Parquet, all or nothing."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_bytes(path, buffer.getvalue())


def read_results(path: Path) -> pd.DataFrame:
    """Read a tidy table.

    Raises:
        UserError: The file is damaged or is no such table; the message names it.
    """
    try:
        return check_results(pd.read_parquet(path), str(path))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"can't read {path}: {reason} (nothing was changed; move the file away "
            "to make it again)"
        ) from error


def final_values(results: pd.DataFrame) -> pd.DataFrame:
    """Return the row of the largest step of every (suite, method, seed, split, metric)."""
    order = results.sort_values("step", kind="stable")
    last = order.drop_duplicates(["suite", "method", "seed", "split", "metric"], keep="last")
    return last.sort_index()


def seed_table(results: pd.DataFrame, metric: str, split: str = "test") -> pd.DataFrame:
    """Return final values of a metric with one row per seed and one column per method."""
    rows = final_values(results)
    rows = rows[(rows["metric"] == metric) & (rows["split"] == split)]
    return rows.pivot(index="seed", columns="method", values="value").sort_index()
