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


def matrix_rate(size: int = 1024) -> float:
    """Return GFLOPS of a float32 product of square matrices."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = median_seconds({"product": timed(lambda: a @ b)})["product"]
    return 2 * size**3 / seconds / 1e9


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch use so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
