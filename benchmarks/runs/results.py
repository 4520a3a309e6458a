"""The tidy table of a run: one finite value per row.

Columns: suite, method (lower case), the `CONDITIONS` that it was measured under, seed, step, split,
metric, value. What does not apply has no row. A condition that does not apply to a row is "" or 0,
never null, so that pandas groups, joins and compares by all columns. A metric of time ends in `_s`,
`_ms` or `_per_s` and is outside the promise of equal numbers.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.errors import UserError
from benchmarks.runs.files import write_bytes

CONDITIONS: dict[str, str | int] = {
    "market": "",  # alignment: rules of the world, `base` for those of its own
    "ablation": "",  # alignment: the one change of a method
    "catalogue": "",  # tokenizers: which items
    "mode": "",  # environment: with the world's `rankers`, or `free` of them; decoding: which way
    "kind": "",  # off_policy: what is logged, single `ads` or `slates`
    "reward": "",  # off_policy: what is estimated
    "policy": "",  # off_policy: the target policy; without one a mean over all
    "task": "",  # cards of rankers: `pctr` or `pcvr`
    "group": "",  # cards of rankers: which ads
    "part": "",  # of a piece of work: which stage, call or measurement
    "threads": 0,  # of torch
    "batch": 0,  # B, rows side by side
    "num_ads": 0,  # environment, decoding: N of a random catalogue
    "depth": 0,  # architecture: recursions, or layers of a decoder
    "level": 0,  # of the code tree, from 1
    "bin": 0,  # of a reliability diagram, from 1
    "trial": 0,  # of a tuning, from 1, which is the defaults
}
"""What a value was measured under beside its method; here what stands where it does not apply."""
DTYPES = {
    "suite": "str",
    "method": "str",
    **{name: "str" if none == "" else "int64" for name, none in CONDITIONS.items()},
    "seed": "int64",
    "step": "int64",
    "split": "str",
    "metric": "str",
    "value": "float64",
}
COLUMNS = list(DTYPES)
KEY = COLUMNS[:-1]
Conditions = dict[str, str | int]
"""Some of `CONDITIONS` by name."""
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
    **conditions: str | int,
) -> pd.DataFrame:
    """Return the rows of one (method, conditions, seed, step, split), a row per metric.

    Nothing is left out: a value that is not finite is refused when the run's table is checked.
    """
    frame = pd.DataFrame({"metric": list(metrics), "value": [float(v) for v in metrics.values()]})
    frame = frame.assign(suite=suite, method=method, seed=seed, step=step, split=split)
    return complete(frame.assign(**conditions), f"rows of {method!r}")


def applicable(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that apply: what is not finite has no row."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def complete(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """Return the table with all columns in their order; conditions that it lacks do not apply.

    Raises:
        ValueError: Other columns are missing, or superfluous; the message names `source`.
    """
    lacking = {name: none for name, none in CONDITIONS.items() if name not in table.columns}
    table = table.assign(**lacking)
    if sorted(table.columns) != sorted(COLUMNS):
        raise ValueError(f"{source}: columns must be {COLUMNS}, got {list(table.columns)}")
    return table[COLUMNS].astype(DTYPES).reset_index(drop=True)


def check_results(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """Return the table with exactly the tidy columns and types.

    Raises:
        ValueError: Columns are missing or superfluous, a value is not finite, or two rows have one
            key; the message names `source` and the row.
    """
    table = complete(table, source)
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


def under(results: pd.DataFrame, **conditions: str | int) -> pd.DataFrame:
    """Return the rows measured under these conditions, which go without saying from here on.

    Look-ups see rows without conditions only, so nothing is pooled that was not asked for:
    `under(results, market="drift")` are the rows of that market as if there were no other.
    """
    for name, value in conditions.items():
        results = results[results[name] == value]
    return results.assign(**{name: CONDITIONS[name] for name in conditions})


def without_conditions(results: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that no condition applies to."""
    return results[(results[list(CONDITIONS)] == list(CONDITIONS.values())).all(axis=1)]


def write_results(path: Path, table: pd.DataFrame) -> None:
    """Write a tidy table as Parquet, all or nothing."""
    write_bytes(path, table.to_parquet(index=False))


def read_results(path: Path) -> pd.DataFrame:
    """Read a tidy table.

    Raises:
        UserError: The file is damaged or is no such table; the message names it.
    """
    try:
        table = pd.read_parquet(path)
        lacking = [name for name in COLUMNS if name not in table.columns]
        if lacking:
            raise ValueError(f"it lacks the columns {', '.join(lacking)}")
        return check_results(table, str(path))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"can't read {path}: {reason} (nothing was changed; move the file away "
            "to make it again)"
        ) from error


def final_values(results: pd.DataFrame) -> pd.DataFrame:
    """Return the row of the largest step of every key but for the step."""
    order = results.sort_values("step", kind="stable")
    last = order.drop_duplicates([name for name in KEY if name != "step"], keep="last")
    return last.sort_index()


def published(results: pd.DataFrame) -> pd.DataFrame:
    """Return what a page's table keeps: all rows but the steps of training before the last."""
    last = results.index.isin(final_values(results).index)
    return results[last | (results["split"] != "train")]


def seed_table(results: pd.DataFrame, metric: str, split: str = "test") -> pd.DataFrame:
    """Return final values without conditions: a row per seed and a column per method."""
    rows = results[(results["metric"] == metric) & (results["split"] == split)]
    rows = final_values(without_conditions(rows))
    return rows.pivot(index="seed", columns="method", values="value").sort_index()
