"""Look-ups in the environment suite's rows."""

import re
from collections.abc import Sequence

import pandas as pd

from benchmarks.environment.presets import TARGET_BATCH, VECTOR
from benchmarks.reports.lookup import values_of
from benchmarks.reports.statistics import Interval

_BATCH = re.compile(r"^(?:rankers|free)/threads\d+/batch(\d+)/")
_PIECES = re.compile(r"^pieces/threads(\d+)/batch(\d+)/")


def value(results: pd.DataFrame, method: str, metric: str) -> float | None:
    """Return the median over rounds; None without rows."""
    found = values_of(results, method, metric)
    return float(found.median()) if len(found) else None


def figure(
    results: pd.DataFrame, method: str, prefix: str, name: str = "choices_per_s"
) -> Interval | None:
    """Return the median over rounds, with the lowest and the highest repeat; None without rows."""
    middle = value(results, method, f"{prefix}/{name}")
    if middle is None:
        return None
    ends = [values_of(results, method, f"{prefix}/{end}_{name}") for end in ("slowest", "fastest")]
    both = pd.concat(ends)
    return Interval(middle, float(both.min()), float(both.max()))


def batches(results: pd.DataFrame, method: str) -> list[int]:
    """Return the B that an interface was measured at, rising."""
    metrics = results.loc[results["method"] == method, "metric"]
    return sorted({int(found[1]) for m in metrics if (found := _BATCH.match(m))})


def pieces(results: pd.DataFrame, threads: int) -> dict[str, float]:
    """Return `batch`, and ms of what `piece_seconds` gives; empty without rows."""
    metrics = results.loc[results["method"] == VECTOR, "metric"].unique()
    matches = [found for m in metrics if (found := _PIECES.match(m)) and int(found[1]) == threads]
    if not matches:
        return {}
    batch = max(int(match[2]) for match in matches)
    prefix = f"pieces/threads{threads}/batch{batch}/"
    taken = {
        m.removeprefix(prefix).removesuffix("_ms"): value(results, VECTOR, m) or 0.0
        for m in metrics
        if m.startswith(prefix)
    }
    return taken | {"batch": float(batch)}


def best_threads(results: pd.DataFrame, threads: Sequence[int]) -> int:
    """Return with how many threads the vector environment is fastest, at the largest B to 1,024.

    The largest number where it was not measured.
    """
    within = [batch for batch in batches(results, VECTOR) if batch <= TARGET_BATCH]
    rates = {
        n: value(results, VECTOR, f"rankers/threads{n}/batch{max(within)}/choices_per_s") or 0.0
        for n in threads
        if within
    }
    return max(rates, key=rates.__getitem__, default=max(threads))
