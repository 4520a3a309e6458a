"""Repeats of a measurement as figures of a tidy table, and figures that no run repeats."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import pandas as pd

from benchmarks.decoding.presets import SUITE, DecodingPreset
from benchmarks.measure.timing import limited_seconds
from benchmarks.runs.files import write_text
from benchmarks.runs.results import complete, empty_results, tidy
from benchmarks.runs.tasks import PARTS

OBSERVED = "observed"
"""Files of figures that are neither times nor the same in every run: memory, refused requests."""


def rows(method: str, seed: int, metrics: Mapping[str, float], **at: str | int) -> pd.DataFrame:
    """Return tidy rows of one round of a part of the suite."""
    return tidy(SUITE, method, seed, metrics, step=0, split="test", **at)


def repeated(
    runs: Mapping[str, Callable[[], float]], sizes: DecodingPreset
) -> dict[str, list[float]]:
    """Return the seconds that each run says, of the repeats that the preset has time for."""
    return limited_seconds(runs, sizes.num_repeats, sizes.limit_s)


def rate(seconds: list[float], batch: int) -> dict[str, float]:
    """Return requests per second of searches of `batch` requests: median, slowest and fastest."""
    return {
        "requests_per_s": batch / median(seconds),
        "slowest_requests_per_s": batch / max(seconds),
        "fastest_requests_per_s": batch / min(seconds),
    }


def spread(name: str, values: list[float]) -> dict[str, float]:
    """Return a figure that is better the lower: median, slowest and fastest."""
    return {name: median(values), f"slowest_{name}": max(values), f"fastest_{name}": min(values)}


def write_observed(file: Path, tables: Sequence[pd.DataFrame]) -> None:
    """Write tidy rows of figures that no run repeats, which have no place in the run's table."""
    write_text(file, pd.concat([empty_results(), *tables]).to_csv(index=False))


def observed_file(out: Path, name: str) -> Path:
    """Return where a task leaves such figures."""
    return out / PARTS / f"{OBSERVED}-{name}.csv"


def read_observed(out: Path) -> pd.DataFrame:
    """Return such figures of all tasks of a run."""
    files = sorted((out / PARTS).glob(f"{OBSERVED}-*.csv"))
    tables = [complete(pd.read_csv(file, keep_default_na=False), str(file)) for file in files]
    return pd.concat([empty_results(), *tables])
