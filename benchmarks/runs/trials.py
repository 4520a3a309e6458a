"""What a tuning tries and what it chooses: settings, equally many for each, and the best of them.

A choice is a JSON file: `chosen` settings, and `trials` with their `settings` and `score`, null
where a trial failed.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch

from benchmarks.runs.files import write_json
from benchmarks.runs.results import read_results
from benchmarks.runs.tasks import Task
from gpr_rl.checkpoint import CheckpointError
from gpr_rl.random import Purpose, uniform

Value = TypeVar("Value")
Config = TypeVar("Config")


def draw_trials(space: Mapping[str, tuple[Value, ...]], num_trials: int) -> list[dict[str, Value]]:
    """Return what every trial sets: nothing, then draws without replacement.

    The draws have the same numbers in every space; a space smaller than `num_trials` gives fewer.
    """
    size = math.prod(len(values) for values in space.values())
    order = uniform(0, Purpose.TUNING, torch.arange(size)).argsort(stable=True).tolist()
    trials: list[dict[str, Value]] = [{}]
    for number in order[: num_trials - 1]:
        setting = {}
        for name, values in space.items():
            number, place = divmod(number, len(values))
            setting[name] = values[place]
        trials.append(setting)
    return trials


def write_choice(
    output: Path,
    trials: Sequence[Mapping[str, Any]],
    cost: Callable[[Mapping[str, Any]], Any],
) -> None:
    """Write the trial with the least cost, the first of equal ones.

    Each has `settings` and `score`; one whose score is None can't be chosen, unless all are so.
    """
    scored = [trial for trial in trials if trial["score"] is not None]
    best = min(scored, key=cost, default=trials[0])
    write_json(output, {"chosen": best["settings"], "trials": trials})


def choose(
    *,
    settings: Sequence[Mapping[str, Any]],
    parts: Sequence[Sequence[Path]],
    metrics: Sequence[str],
    output: Path,
    sign: float = 1.0,
    error: str = "",
) -> None:
    """Write the trial whose means over the tuning seeds are least, or largest where `sign` is -1.

    Every trial has `parts`, its tables by seed, without rows where it failed. The first of the
    `metrics` is the score, the others decide between equal ones. `error` names the metric that is a
    score's standard error within a seed; then a trial's `error` is that of its mean.
    """
    trials: list[dict[str, Any]] = []
    for setting, paths in zip(settings, parts, strict=True):
        table = pd.concat([read_results(path) for path in paths])
        scores = [table.loc[table["metric"] == name, "value"].tolist() for name in metrics]
        known = all(len(values) == len(paths) for values in scores)
        means = [sum(values) / len(values) for values in scores] if known else [None]
        trial = {"settings": setting, "scores": scores[0], "score": means[0], "means": means}
        if error and known:
            within = table.loc[table["metric"] == error, "value"]
            trial["error"] = math.sqrt((within**2).sum()) / len(within)
        trials.append(trial)
    write_choice(output, trials, lambda trial: [sign * mean for mean in trial["means"]])


def trial_tasks(
    trial: Task,
    settings: Sequence[Mapping[str, Any]],
    needs: Mapping[int, tuple[str, ...]],
    choice: Path,
    **how: object,
) -> list[Task]:
    """Return a row's trials on every tuning seed, then the task `choose ROW`.

    `trial` is named as the row and lacks the number and the seed of a trial; `needs` says by tuning
    seed what is to be there before. `how` are arguments of `choose` that are the suite's own.
    """
    tasks = [
        replace(
            trial,
            name=f"tuning {trial.name}, trial {number}, seed {seed}",
            kwargs={**trial.kwargs, "trial": number, "seed": seed},
            needs=needed,
        )
        for number in range(len(settings))
        for seed, needed in needs.items()
    ]
    outputs = [task.output for task in tasks]
    width = len(needs)
    parts = [outputs[i : i + width] for i in range(0, len(outputs), width)]
    chosen = replace(
        trial,
        name=f"choose {trial.name}",
        function="benchmarks.runs.trials:choose",
        kwargs={"settings": settings, "parts": parts, "output": choice, **how},
        needs=tuple(task.name for task in tasks),
        files=(choice,),
        cost=0.01,
    )
    return [*tasks, chosen]


def tune_rate(
    rates: Sequence[float],
    config: Config,
    cost: Callable[[Config], float],
    output: Path,
    *,
    sign: float = 1.0,
) -> None:
    """Try learning rates, in the order of preference, and write the one with the least cost.

    `cost` trains; it is not finite, or a FloatingPointError, where training diverged. The score
    is the cost times `sign`.
    """
    trials = []
    for rate in rates:
        try:
            found = cost(replace(config, learning_rate=rate))  # type: ignore[type-var]
        except FloatingPointError:
            found = math.inf
        score = sign * found if math.isfinite(found) else None
        trials.append({"settings": {"learning_rate": rate}, "score": score})
    write_choice(output, trials, lambda trial: sign * trial["score"])


def read_trials(path: Path) -> dict[str, Any]:
    """Return `chosen` and `trials` of a choice.

    Raises:
        CheckpointError: It can't be read.
    """
    try:
        log = json.loads(path.read_text())
        return {"chosen": log["chosen"], "trials": log["trials"]}
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(path, str(error)) from error


def with_choice(config: Config, path: Path | None) -> Config:
    """Return a configuration with the chosen settings; itself where nothing was tuned."""
    return config if path is None else replace(config, **read_trials(path)["chosen"])  # type: ignore[type-var]
