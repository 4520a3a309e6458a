"""What the user sees on stderr while tasks run: a bar on a terminal, few plain lines elsewhere."""

import json
import time
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from benchmarks.runs.tasks import Ending, Task


class Display:
    """A bar over all tasks with the time left, and a line per task at work with its step.

    Where the stream is no terminal, one line per finished task.
    """

    def __init__(self, tasks: list[Task], log: Path, stream: TextIO) -> None:
        self._cost = {task.name: task.cost for task in tasks}
        self._fraction = dict.fromkeys(self._cost, 0.0)
        self._log, self._offset = log, log.stat().st_size if log.exists() else 0
        self._stream, self._num_done = stream, 0
        self._started = time.monotonic()
        self._lines: dict[str, TaskID] = {}
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=Console(file=stream),
            transient=True,
            disable=not stream.isatty(),
        )
        self._whole = self._bar.add_task("all", total=sum(self._cost.values()), note="")
        self._bar.start()

    def started(self, task: Task) -> None:
        """Add a line."""
        self._lines[task.name] = self._bar.add_task(f"  {task.name}", total=1.0, note="")

    def ended(self, task: Task, ending: Ending) -> None:
        """Take the task's line away."""
        self._num_done += 1
        if self._bar.disable:
            outcome = f"{ending.seconds:.1f} s" if ending.error is None else "failed"
            line = f"[{self._num_done}/{len(self._cost)}] {task.name}: {outcome}"
            print(line, file=self._stream, flush=True)
        self._fraction[task.name] = 1.0
        self._bar.remove_task(self._lines.pop(task.name))
        self.tick()

    def tick(self) -> None:
        """Read what tasks wrote to the log and move the bars."""
        for line in self._new_lines():
            name, step, total = line.get("task"), line.get("step"), line.get("num_steps")
            if name in self._lines and isinstance(step, int) and isinstance(total, int) and total:
                self._fraction[name] = min(step / total, 1.0)
                self._bar.update(
                    self._lines[name], completed=step / total, note=f"step {step}/{total}"
                )
        done = sum(self._cost[name] * share for name, share in self._fraction.items())
        whole = sum(self._cost.values())
        elapsed = time.monotonic() - self._started
        left = f"about {_duration(elapsed * (whole - done) / done)} left" if done else ""
        self._bar.update(self._whole, completed=done, note=left)

    def close(self) -> None:
        """Remove the bars."""
        self._bar.stop()

    def _new_lines(self) -> list[dict]:
        if not self._log.exists():
            return []
        with self._log.open("rb") as file:
            file.seek(self._offset)
            whole, _, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + 1 if whole else 0
        return [json.loads(line) for line in whole.splitlines()]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3_600:.1f} h"
