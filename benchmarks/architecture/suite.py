"""Tab. 2: which architecture retrieves best? Rivals, single additions to a base, and the full HHD.

All rows read the same windows in the same order, have the same width and number of layers, and
choose their learning rate by the same trials on a world that the test does not use. Every row ranks
the whole catalogue for held-out requests whose ad was clicked.
"""

import importlib.util
from pathlib import Path

import pandas as pd

from benchmarks.architecture.presets import (
    MACHINE,
    NO_TRAINING,
    PRESETS,  # noqa: F401, what `load_suite` reads
    ArchitecturePreset,
)
from benchmarks.architecture.presets import (
    METHODS as ALL_METHODS,
)
from benchmarks.architecture.protocol import PROTOCOLS  # noqa: F401
from benchmarks.architecture.report import make_report
from benchmarks.reports.blocks import SuiteReport
from benchmarks.runs.tasks import Task
from benchmarks.suite import Settings
from benchmarks.worlds import needs_world, world_seed, world_tasks
from simulators.make import load_world
from simulators.progress import silent

IS_EXTENDABLE = True
_OPTIONAL = {"tiger": "transformers"}
METHODS = tuple(
    row for row in ALL_METHODS if row not in _OPTIONAL or importlib.util.find_spec(_OPTIONAL[row])
)
"""TIGER only where transformers is installed."""


def tuned_file(settings: Settings, row: str) -> Path | None:
    """Return where a row's learning rate is kept; None where it is not tuned."""
    assert isinstance(settings.sizes, ArchitecturePreset)
    if len(settings.sizes.learning_rates) < 2 or row in NO_TRAINING:
        return None
    return settings.out / "tuning" / f"{row}.json"


def make_tasks(settings: Settings) -> list[Task]:
    """Return worlds, tuning, every (row, seed) and the speed measurement."""
    sizes, out = settings.sizes, settings.out
    assert isinstance(sizes, ArchitecturePreset)
    tunes = any(tuned_file(settings, row) for row in settings.methods)
    seeds = [*settings.seeds, *((sizes.tuning_seed,) if tunes else ())]
    tasks = world_tasks(settings.world, seeds, out, cost=3.0)
    for row in settings.methods:
        tuned = tuned_file(settings, row)
        if tuned is not None:
            tasks.append(
                Task(
                    name=f"tuning {row}",
                    function="benchmarks.architecture.train:run_trial",
                    kwargs={
                        "world": settings.world,
                        "protocol": settings.protocol,
                        "row": row,
                        "sizes": sizes,
                        "output": tuned,
                    },
                    needs=needs_world(settings.world, sizes.tuning_seed),
                    output=out / "parts" / f"tuning-{row}.parquet",
                    files=(tuned,),
                )
            )
        for seed in settings.seeds:
            tasks.append(
                Task(
                    name=f"{row}, seed {seed}",
                    function="benchmarks.architecture.train:run_row",
                    kwargs={
                        "world": settings.world,
                        "protocol": settings.protocol,
                        "row": row,
                        "seed": seed,
                        "tuned": tuned,
                        "sizes": sizes,
                    },
                    needs=(
                        *needs_world(settings.world, seed),
                        *((f"tuning {row}",) if tuned is not None else ()),
                    ),
                    output=out / "parts" / f"{row}-seed{seed}.parquet",
                    cost=0.1 if row in NO_TRAINING else 1.0,
                )
            )
    tasks.append(
        Task(
            name="speed",
            function="benchmarks.architecture.speed:measure_speed",
            kwargs={"seed": settings.seeds[0], "sizes": sizes},
            needs=tuple(task.name for task in tasks),  # alone: it measures with two threads
            output=out / "parts" / f"{MACHINE}.parquet",
        )
    )
    return tasks


def finish(settings: Settings, results: pd.DataFrame) -> SuiteReport:
    """Return the report of a finished run."""
    seed = world_seed(settings.world, settings.seeds[0])
    info = load_world(settings.world, seed=seed, progress=silent).info
    tuned = {row: tuned_file(settings, row) for row in settings.methods}
    return make_report(results, settings, info, tuned)
