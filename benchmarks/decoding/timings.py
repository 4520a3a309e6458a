"""Repeats of a measurement as figures of a tidy table."""

from collections.abc import Callable, Mapping
from statistics import median

import pandas as pd

from benchmarks.decoding.presets import SUITE, DecodingPreset
from benchmarks.measure.timing import limited_seconds
from benchmarks.runs.results import tidy


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
