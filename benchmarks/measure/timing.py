"""Seconds of a call, and the machine's own speed, which bounds everything else."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

NUM_RUNS = 15


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """Return a call that says how many seconds it took."""

    def run() -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    return run


def median_seconds(
    runs: Mapping[str, Callable[[], float]], repeats: int = NUM_RUNS, warm_ups: int = 2
) -> dict[str, float]:
    """Return the median of the seconds that each run says, after some rounds that don't count.

    They take turns, so that what else the machine does meets them alike.
    """
    rounds = [{name: run() for name, run in runs.items()} for _ in range(warm_ups + repeats)]
    return {name: statistics.median(r[name] for r in rounds[warm_ups:]) for name in runs}


def limited_seconds(
    runs: Mapping[str, Callable[[], float]], repeats: int, limit_s: float
) -> dict[str, list[float]]:
    """Return the seconds that each run says, round by round, after a first that doesn't count.

    There is at least one round, and none begins when `limit_s` has passed. Runs take turns, so that
    what else the machine does meets them alike.
    """
    for run in runs.values():
        run()
    started, found = time.perf_counter(), {name: [run()] for name, run in runs.items()}
    for _ in range(repeats - 1):
        if time.perf_counter() - started > limit_s:
            break
        for name, run in runs.items():
            found[name].append(run())
    return found


def matrix_rate(size: int = 1024) -> float:
    """Return GFLOPS of a float32 product of square matrices."""
    return product_rate(size, size, size)


def product_rate(rows: int, inner: int, columns: int, dtype: torch.dtype = torch.float32) -> float:
    """Return GFLOPS of a product [rows, inner] by [inner, columns]."""
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
    seconds = median_seconds({"product": timed(lambda: a @ b)})["product"]
    return 2 * rows * inner * columns / seconds / 1e9


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch use so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
