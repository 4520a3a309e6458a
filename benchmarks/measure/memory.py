"""Peak memory of a block, and processes of their own to measure it in.

A process that did other things before has free memory to reuse, so every figure comes from a fresh
one.
"""

import ctypes
import gc
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MEMORY_INFO = Path("/proc/meminfo")
_RESET_PEAK = "5"
KIB_PER_MIB = 1024.0


def _kib(path: Path, name: str) -> int:
    line = next(text for text in path.read_text().splitlines() if text.startswith(f"{name}:"))
    return int(line.split()[1])


def can_measure() -> bool:
    """Say whether this system tells a process its peak memory (Linux)."""
    return _STATUS.is_file() and os.access(_CLEAR, os.W_OK)


def free_bytes() -> float:
    """Return the memory that is available; without limit where the system does not say."""
    return _kib(_MEMORY_INFO, "MemAvailable") * 1024.0 if _MEMORY_INFO.is_file() else float("inf")


def resident_mib() -> float | None:
    """Return the memory that this process has now; None where the system does not say."""
    return _kib(_STATUS, "VmRSS") / KIB_PER_MIB if _STATUS.is_file() else None


class PeakMemory:
    """By how much resident memory rose at most inside a `with` block, in MiB.

    `peak_mib` is None where the system does not say. Pages shared with other processes count, but
    they are there before.
    """

    peak_mib: float | None = None

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
            trim(0)  # glibc: what was freed would be used again, and hide what is taken next
        if can_measure():
            _CLEAR.write_text(_RESET_PEAK)
            self._before = _kib(_STATUS, "VmRSS")
        return self

    def __exit__(self, *error: object) -> None:
        if can_measure():
            self.peak_mib = max(_kib(_STATUS, "VmHWM") - self._before, 0) / KIB_PER_MIB


def in_fresh_process(call: Callable[..., Any], **kwargs: Any) -> Any:
    """Return what `call(**kwargs)` returns in a new process, which ends with it."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(call, **kwargs).result()
