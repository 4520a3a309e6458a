"""Tab. 2: which architecture retrieves best? Rivals, single additions to a base, and the full HHD.

All rows read the same windows in the same order, have the same width and number of layers, and
choose their learning rate by the same trials on a world that the test does not use. Every row ranks
the whole catalogue, without eligibility, for held-out requests whose ad was clicked. Rows that
decode codes find one ad per path; the metric `unreachable` is the share of targets that they miss.
"""

import importlib.util
from functools import partial
from pathlib import Path

import pandas as pd

from benchmarks.architecture import presets
from benchmarks.architecture.presets import NO_TRAINING, ArchitecturePreset
from benchmarks.architecture.report import make_report
from benchmarks.reports.blocks import SuiteReport
from benchmarks.runs.tasks import Task
from benchmarks.settings import Settings
from benchmarks.worlds import needs_world, open_world, world_tasks

_OPTIONAL = {"tiger": "transformers"}
METHODS = tuple(
    row
    for row in presets.METHODS
    if row not in _OPTIONAL or importlib.util.find_spec(_OPTIONAL[row])
)
"""TIGER only where transformers is installed."""
PRESETS = presets.PRESETS


def tuned_file(settings: Settings[ArchitecturePreset], row: str) -> Path | None:
    """Return where a row's learning rate is kept; None where it is not tuned."""
    return None if row in NO_TRAINING else settings.tuned_file(row)


def make_tasks(settings: Settings[ArchitecturePreset]) -> list[Task]:
    """Return worlds, tuning, every (row, seed) and the speed measurement."""
    sizes, world = settings.sizes, settings.world
    tunes = any(tuned_file(settings, row) for row in settings.methods)
    seeds = [*settings.seeds, *((sizes.tuning_seed,) if tunes else ())]
    tasks = world_tasks(settings, seeds, cost=3.0)
    for row in settings.methods:
        tuned = tuned_file(settings, row)
        name = f"tuning {row}"
        tuning = () if tuned is None else (name,)
        task = partial(settings.task, world=world, protocol=settings.protocol, row=row, sizes=sizes)
        if tuned is not None:
            made = needs_world(world, sizes.tuning_seed)
            trial = "architecture.train:run_trial"
            tasks.append(task(name, trial, needs=made, files=(tuned,), output=tuned))
        tasks += [
            task(
                f"{row}, seed {seed}",
                "architecture.train:run_row",
                needs=(*needs_world(world, seed), *tuning),
                cost=0.1 if row in NO_TRAINING else 1.0,
                seed=seed,
                tuned=tuned,
            )
            for seed in settings.seeds
        ]
    before = tuple(task.name for task in tasks)  # alone: it measures with two threads
    measure = "architecture.speed:measure_speed"
    return [
        *tasks,
        settings.task("speed", measure, needs=before, seed=settings.seeds[0], sizes=sizes),
    ]


def finish(settings: Settings, results: pd.DataFrame) -> SuiteReport:
    """Return the report of a finished run."""
    info = open_world(settings.world, settings.seeds[0]).info
    tuned = {row: tuned_file(settings, row) for row in settings.methods}
    return make_report(results, settings, info, tuned)
