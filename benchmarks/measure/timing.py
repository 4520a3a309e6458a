"""Seconds of a call, and the machine's own speed, which bounds everything else."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

NUM_RUNS = 15


def median_s(call: Callable[[], object], runs: int = NUM_RUNS) -> float:
    """Return the median seconds of `call` after two warm-up calls."""
    times = []
    for run in range(runs + 2):
        started = time.perf_counter()
        call()
        if run >= 2:
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def matrix_rate(size: int = 1024) -> float:
    """Return GFLOPS of a float32 product of square matrices."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / median_s(lambda: a @ b) / 1e9


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch use so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
