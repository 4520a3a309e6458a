"""A task: a function that runs in a process of its own and returns tidy rows."""

import importlib
import re
import sys
import time
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.errors import describe_error, is_users_mistake
from benchmarks.runs.files import append_json_line
from benchmarks.runs.results import check_results, empty_results, write_results

PARTS = "parts"
PROCESS_ENVIRONMENT = {
    **{name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")},
    "RL_LOGGING_LEVEL": "WARNING",
}
"""Environment of every process that runs tasks: one thread each, also with one worker, and no
chatter of torchrl's on standard output."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One unit of work, finished once and never again."""

    name: str
    """Unique in a run; shown in progress lines and errors, e.g. `hepo, seed 0`."""
    function: str
    """`package.module:function`; called with `kwargs`, returns a tidy table (or None: no rows)."""
    kwargs: Mapping[str, object] = field(default_factory=dict)
    """Picklable."""
    needs: tuple[str, ...] = ()
    """Names of the tasks that must be finished before."""
    out: Path
    """The run's folder."""
    files: tuple[Path, ...] = ()
    """What else a finished task leaves behind (checkpoints); `--resume` checks that it is there."""
    cost: float = 1.0
    """Expected time in any unit, for the time left."""

    @property
    def output(self) -> Path:
        """Parquet file of the rows, e.g. `parts/hepo-seed0.parquet`; there when it is done."""
        file = re.sub(r" (?=\d)", "", self.name).replace(", ", "-").replace(" ", "-")
        return self.out / PARTS / f"{file}.parquet"


@dataclass(frozen=True)
class Ending:
    """How a task ended; `error` is None when its output is written."""

    name: str
    seconds: float
    error: str | None = None
    is_users: bool = False
    died: bool = False
    """Its process is gone, and with it perhaps those of other tasks."""
    details: str = ""


_RUNNING: ContextVar[tuple[str, Path] | None] = ContextVar("running_task", default=None)
"""Name and log."""


def log_progress(step: int, num_steps: int, **measures: object) -> None:
    """Append a line about the running task to the run's `log.jsonl`; outside of a task, do nothing.

    NaN and inf among the measures are written as null.
    """
    running = _RUNNING.get()
    if running is not None:
        name, log = running
        append_json_line(log, {"task": name, "step": step, "num_steps": num_steps, **measures})


def run_task(task: Task, log: Path) -> Ending:
    """Run a task in this process and write its rows; errors come back, they are not raised."""
    started = time.perf_counter()
    token = _RUNNING.set((task.name, log))
    failure: dict[str, Any] = {}
    try:
        module_name, _, function_name = task.function.partition(":")
        function = getattr(importlib.import_module(module_name), function_name)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        rows = function(**task.kwargs)
        table = empty_results() if rows is None else check_results(rows, f"task {task.name!r}")
        write_results(task.output, table)
    except Exception as error:
        failure = {"error": describe_error(error), "is_users": is_users_mistake(error)}
        failure["details"] = traceback.format_exc()
    finally:
        _RUNNING.reset(token)
    return Ending(task.name, time.perf_counter() - started, **failure)
