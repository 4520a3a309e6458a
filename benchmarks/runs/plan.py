"""Plans the tasks of a run: what the suites' `make_tasks` have in common."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.runs.tasks import Task


def tuned_file(out: Path, sizes: object, row: str) -> Path | None:
    """Return where a row's choice is kept; None where a run of these sizes does not tune."""
    tunes = bool(getattr(sizes, "tuning_seeds", ()))
    return out / "tuning" / f"{row}.json" if tunes else None


class Plan:
    """Tasks of a run, each added after what it needs."""

    def __init__(self, out: Path, tasks: Iterable[Task] = ()) -> None:
        self.out, self.tasks = out, list(tasks)

    @property
    def names(self) -> tuple[str, ...]:
        """All tasks so far: what a task needs that must be alone."""
        return tuple(task.name for task in self.tasks)

    def add(
        self,
        name: str,
        function: str,
        *,
        needs: tuple[str, ...] = (),
        files: tuple[Path, ...] = (),
        cost: float = 1.0,
        **kwargs: object,
    ) -> Task:
        """Add a task with these `kwargs`, whose rows go to a part that is named after it."""
        part = name.replace(", seed ", "-seed").replace(",", "").replace(" ", "-")
        task = Task(
            name=name,
            function=function,
            kwargs=kwargs,
            needs=needs,
            output=self.out / "parts" / f"{part}.parquet",
            files=files,
            cost=cost,
        )
        self.tasks.append(task)
        return task

    def add_tuning(
        self,
        row: str,
        module: str,
        *,
        num_trials: int,
        seeds: Sequence[int],
        needs: Callable[[int], tuple[str, ...]],
        shared: Mapping[str, Any],
        choice: Mapping[str, Any],
        cost: float,
    ) -> Task:
        """Add the trials of a row and the choice among them.

        Args:
            row: What is tuned.
            module: With `run_trial` and `choose`.
            num_trials: Of each seed.
            seeds: No test uses them.
            needs: Of the trials of a seed.
            shared: What `run_trial` takes beside `trial` and `seed`.
            choice: What `choose` takes beside `parts`; `output` among it.
            cost: Of a trial.
        """
        first = len(self.tasks)
        parts = [
            [
                self.add(
                    f"tuning {row}, trial {trial}, seed {seed}",
                    f"{module}:run_trial",
                    needs=needs(seed),
                    cost=cost,
                    **shared,
                    trial=trial,
                    seed=seed,
                ).output
                for seed in seeds
            ]
            for trial in range(num_trials)
        ]
        return self.add(
            f"choose {row}",
            f"{module}:choose",
            needs=self.names[first:],
            files=(choice["output"],),
            cost=0.01,
            **choice,
            parts=parts,
        )
