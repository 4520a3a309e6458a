"""Look-ups in the environment suite's rows."""

from collections.abc import Sequence

import pandas as pd

from benchmarks.environment.presets import TARGET_BATCH, VECTOR
from benchmarks.reports.lookup import median_of as value
from benchmarks.reports.lookup import repeats_of
from benchmarks.reports.statistics import Interval
from benchmarks.runs.results import Conditions


def figure(
    results: pd.DataFrame, method: str, metric: str = "choices_per_s", **conditions: str | int
) -> Interval | None:
    """Return the median over rounds, with the lowest and the highest repeat; None without rows."""
    return repeats_of(results, method, metric, **conditions)


def batches(results: pd.DataFrame, method: str) -> list[int]:
    """Return the B that an interface was measured at, rising."""
    played = results[(results["method"] == method) & (results["mode"] != "")]
    return sorted(played["batch"].unique().tolist())


def pieces(results: pd.DataFrame, threads: int) -> dict[str, float]:
    """Return `batch`, and ms of what `piece_seconds` gives; empty without rows."""
    found = results[(results["metric"] == "part_ms") & (results["threads"] == threads)]
    if found.empty:
        return {}
    batch = int(found["batch"].max())
    taken = found[found["batch"] == batch].groupby("part")["value"].median()
    return {str(name): float(ms) for name, ms in taken.items()} | {"batch": float(batch)}


def best_threads(results: pd.DataFrame, threads: Sequence[int]) -> int:
    """Return with how many threads the vector environment is fastest, at the largest B to 1,024.

    The largest number where it was not measured.
    """
    within = [batch for batch in batches(results, VECTOR) if batch <= TARGET_BATCH]
    if not within:
        return max(threads)
    at: Conditions = {"mode": "rankers", "batch": max(within)}
    rates = {n: value(results, VECTOR, "choices_per_s", threads=n, **at) or 0.0 for n in threads}
    return max(rates, key=rates.__getitem__)
