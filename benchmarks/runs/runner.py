"""Runs a graph of tasks in processes; every task is finished once, also across interruptions."""

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pandas as pd

from benchmarks.errors import UserError
from benchmarks.runs.files import append_json_line
from benchmarks.runs.launchers import LAUNCHERS, Launcher
from benchmarks.runs.progress import Display
from benchmarks.runs.results import empty_results, read_results
from benchmarks.runs.tasks import Ending, Task

POLL_S = 0.25


class TaskFailed(Exception):
    """A task ended with an error that is not the user's; `details` has its traceback."""

    def __init__(self, ending: Ending, also: Sequence[str] = ()) -> None:
        text = f"task {ending.name!r} failed: {ending.error}"
        if also:
            text += f" (so did {', '.join(also)})"
        super().__init__(text)
        self.details = ending.details


class TaskMistake(UserError):
    """A task met a user's mistake; `details` has its traceback."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(f"task {ending.name!r}: {ending.error}")
        self.details = ending.details


def check_graph(tasks: Sequence[Task]) -> None:
    """Check that names and outputs are unique and that every need comes earlier in the list.

    Raises:
        ValueError: They are not; the message names the task.
    """
    seen: set[str] = set()
    outputs: set[Path] = set()
    for task in tasks:
        if task.name in seen or task.output in outputs:
            raise ValueError(f"two tasks have the name {task.name!r} or the output {task.output}")
        for need in task.needs:
            if need not in seen:
                raise ValueError(f"task {task.name!r} needs {need!r}, which is not before it")
        seen.add(task.name)
        outputs.add(task.output)


def check_files(tasks: Sequence[Task], checkpoints: Path) -> set[str]:
    """Return the names of the finished tasks; all that they left must be readable.

    Raises:
        UserError: One is not, or a finished task's file is missing. The message names the file;
            nothing is changed.
    """
    from gpr_rl.checkpoint import CheckpointError, load_checkpoint  # torch: seconds

    finished = set()
    for task in tasks:
        if not task.output.exists():
            continue
        read_results(task.output)
        for path in task.files:
            again = f"remove {task.output} to run {task.name!r} again"
            if not path.exists():
                raise UserError(f"{path} is missing, though its task is finished: {again}")
            if path.suffix == ".json":
                try:
                    json.loads(path.read_text())
                except ValueError as error:
                    raise UserError(f"can't read {path}: {error} ({again})") from error
        finished.add(task.name)
    for path in sorted(checkpoints.rglob("*.safetensors")):
        if path.name.startswith("."):
            continue
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            raise UserError(
                f"{error} (nothing was changed; move the file away to make it again)"
            ) from error
    return finished


def run_tasks(
    tasks: Sequence[Task],
    *,
    num_workers: int,
    log: Path,
    checkpoints: Path,
    launcher: str = "local",
) -> pd.DataFrame:
    """Run what is not finished and return all rows, in the order of the tasks.

    The rows don't depend on the number of processes. `log` is appended to; all safetensors files in
    `checkpoints` must be readable.

    Raises:
        UserError: A damaged file, or a user's mistake that a task met: at once.
        TaskFailed: Any other error of a task, when all that do not need it have ended. Finished
            tasks stay finished.
        KeyboardInterrupt: Ctrl-C; the processes have ended, finished tasks stay finished.
    """
    check_graph(tasks)
    finished = check_files(tasks, checkpoints)
    pending = [task for task in tasks if task.name not in finished]
    if finished:
        print(f"{len(finished)} of {len(tasks)} tasks were finished before", file=sys.stderr)
    if pending:
        with ExitStack() as ends:
            processes = LAUNCHERS[launcher](min(num_workers, len(pending)))
            ends.callback(processes.stop)
            display = Display(pending, log, sys.stderr)
            ends.callback(display.close)
            _run_pending(pending, finished, processes, num_workers, log, display)
    tables = [read_results(task.output) for task in tasks]
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else empty_results()


def _run_pending(
    pending: list[Task],
    finished: set[str],
    processes: Launcher,
    num_workers: int,
    log: Path,
    display: Display,
) -> None:
    waiting = list(pending)
    running: dict[str, Task] = {}
    failed: dict[str, Ending] = {}
    while waiting or running:
        for task in [t for t in waiting if finished.issuperset(t.needs)]:
            if len(running) == num_workers:
                break
            waiting.remove(task)
            running[task.name] = task
            processes.submit(task, log)
            display.started(task)
        for ending in processes.finished(POLL_S):
            task = running.pop(ending.name)
            display.ended(task, ending)
            append_json_line(
                log, {"task": task.name, "seconds": ending.seconds, "error": ending.error}
            )
            if ending.is_users:
                raise TaskMistake(ending)
            if ending.died:
                raise TaskFailed(ending, list(failed))
            if ending.error is None:
                finished.add(task.name)
            else:
                failed[task.name] = ending
                waiting = _without_needs(waiting, task.name)
        display.tick()
    if failed:
        first, *others = failed
        raise TaskFailed(failed[first], others)


def _without_needs(waiting: Sequence[Task], lost: str) -> list[Task]:
    """Return the tasks that need neither `lost` nor one that does; needs come first."""
    out, kept = {lost}, []
    for task in waiting:
        if out.isdisjoint(task.needs):
            kept.append(task)
        else:
            out.add(task.name)
    return kept
