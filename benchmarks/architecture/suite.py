"""Tab. 2: which architecture retrieves best? Rivals, single additions to a base, and the full HHD.

All rows read the same windows in the same order, have the same width and number of layers, and
choose their learning rate by the same trials on a world that the test does not use. Every row ranks
the whole catalogue for held-out requests whose ad was clicked.
"""

import importlib.util
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.architecture.presets import (
    METHODS as ALL_METHODS,
)
from benchmarks.architecture.presets import (
    NO_TRAINING,
    PRESETS,  # noqa: F401, what `load_suite` reads
    ArchitecturePreset,
)
from benchmarks.architecture.report import make_report
from benchmarks.reports.blocks import SuiteReport
from benchmarks.runs.plan import Plan, tuned_file
from benchmarks.runs.tasks import Task
from benchmarks.settings import Settings
from benchmarks.worlds import needs_world, world_seed, world_tasks
from simulators.make import load_world
from simulators.progress import silent

_OPTIONAL = {"tiger": "transformers"}
METHODS = tuple(
    row for row in ALL_METHODS if row not in _OPTIONAL or importlib.util.find_spec(_OPTIONAL[row])
)
"""TIGER only where transformers is installed."""


def _tuned(settings: Settings, row: str) -> Path | None:
    return None if row in NO_TRAINING else tuned_file(settings.out, settings.sizes, row)


def make_tasks(settings: Settings) -> list[Task]:
    """Return worlds, tuning, every (row, seed) and the speed measurement."""
    world, sizes = settings.world, settings.sizes
    assert isinstance(sizes, ArchitecturePreset)
    tunes = any(_tuned(settings, row) for row in settings.methods)
    seeds = [*settings.seeds, *((sizes.tuning_seed,) if tunes else ())]
    plan = Plan(settings.out, world_tasks(world, seeds, settings.out, cost=3.0))
    train = "benchmarks.architecture.train"
    for row in settings.methods:
        shared: dict[str, Any] = {
            "world": world,
            "protocol": settings.protocol,
            "row": row,
            "sizes": sizes,
        }
        tuned = _tuned(settings, row)
        tuning: tuple[str, ...] = ()
        if tuned is not None:
            task = plan.add(
                f"tuning {row}",
                f"{train}:run_trial",
                needs=needs_world(world, sizes.tuning_seed),
                files=(tuned,),
                **shared,
                output=tuned,
            )
            tuning = (task.name,)
        for seed in settings.seeds:
            plan.add(
                f"{row}, seed {seed}",
                f"{train}:run_row",
                needs=(*needs_world(world, seed), *tuning),
                cost=0.1 if row in NO_TRAINING else 1.0,
                **shared,
                seed=seed,
                tuned=tuned,
            )
    plan.add(
        "speed",
        "benchmarks.architecture.speed:measure_speed",
        needs=plan.names,  # alone: it measures with two threads
        seed=settings.seeds[0],
        sizes=sizes,
    )
    return plan.tasks


def finish(settings: Settings, results: pd.DataFrame) -> SuiteReport:
    """Return the report of a finished run."""
    seed = world_seed(settings.world, settings.seeds[0])
    info = load_world(settings.world, seed=seed, progress=silent).info
    tuned = {row: _tuned(settings, row) for row in settings.methods}
    return make_report(results, settings, info, tuned)
