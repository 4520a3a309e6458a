"""Where tasks run: processes of this machine, or a Ray cluster."""

import importlib.util
import multiprocessing
import os
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.errors import UserError
from benchmarks.runs.tasks import PROCESS_ENVIRONMENT, Ending, Task, run_task


def _start_worker() -> None:
    """Leave Ctrl-C to the parent process, and end when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


class LocalLauncher:
    """`num_workers` spawned processes with one thread each; one worker is a process as well."""

    @staticmethod
    def check() -> None:
        """Do nothing: processes are there."""

    def __init__(self, num_workers: int) -> None:
        self._others = set(multiprocessing.active_children())
        self._pool = ProcessPoolExecutor(
            num_workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
        )
        self._running: dict[Future[Ending], Task] = {}

    def submit(self, task: Task, log: Path) -> None:
        """Start a task, or queue it."""
        with patch.dict(os.environ, PROCESS_ENVIRONMENT):  # a submit is what starts a process
            self._running[self._pool.submit(run_task, task, log)] = task

    def finished(self, timeout_s: float) -> list[Ending]:
        """Return the tasks that ended since the last call, waiting at most `timeout_s` for one."""
        done, _ = wait(self._running, timeout=timeout_s, return_when=FIRST_COMPLETED)
        endings = []
        for future in [f for f in self._running if f in done]:
            task = self._running.pop(future)
            try:
                endings.append(future.result())
            except BrokenProcessPool:
                reason = "its process died (killed from outside, or out of memory)"
                endings.append(Ending(task.name, 0.0, error=reason, died=True))
        return endings

    def stop(self) -> None:
        """End all processes, also those at work."""
        if self._running:
            for child in set(multiprocessing.active_children()) - self._others:
                child.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)


class RayLauncher:
    """The same tasks on a Ray cluster whose nodes share the run's folder.

    Connects to the cluster that `RAY_ADDRESS` names, or starts a local one.
    """

    @staticmethod
    def check() -> None:
        """Raise UserError where Ray is not installed."""
        if importlib.util.find_spec("ray") is None:
            raise UserError(
                "--launcher ray needs Ray, which is not installed: "
                "python -m pip install -e '.[ray]' in the clone's folder"
            )

    def __init__(self, num_workers: int) -> None:
        import ray

        self._ray: Any = ray
        local: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": num_workers}
        ray.init(
            **local,
            runtime_env={"env_vars": {**PROCESS_ENVIRONMENT, "PYTHONPATH": _python_path()}},
            log_to_driver=False,
            include_dashboard=False,
        )
        self._remote = ray.remote(num_cpus=1, max_retries=0)(run_task)
        self._running: dict[Any, Task] = {}

    def submit(self, task: Task, log: Path) -> None:
        """Start a task, or queue it."""
        self._running[self._remote.remote(task, log)] = task

    def finished(self, timeout_s: float) -> list[Ending]:
        """Return the tasks that ended since the last call, waiting at most `timeout_s` for one."""
        done, _ = self._ray.wait(list(self._running), timeout=timeout_s)
        endings = []
        for reference in done:
            task = self._running.pop(reference)
            try:
                endings.append(self._ray.get(reference))
            except self._ray.exceptions.RayError as error:
                reason = f"Ray lost it: {' '.join(str(error).split())}"
                endings.append(Ending(task.name, 0.0, error=reason, died=True))
        return endings

    def stop(self) -> None:
        """End all processes, also those at work."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._ray.shutdown()


def _python_path() -> str:
    """Return what a worker elsewhere needs to import this project and the user's modules."""
    here = [str(Path(__file__).resolve().parents[2]), str(Path.cwd())]
    return os.pathsep.join([*here, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)


Launcher = LocalLauncher | RayLauncher
"""Starts tasks and hands back how they ended."""
LAUNCHERS: dict[str, type[Launcher]] = {"local": LocalLauncher, "ray": RayLauncher}
