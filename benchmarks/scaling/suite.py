"""Fig. 5: how the loss falls with the size of the HHD, from 10,000 to 10 million parameters.

All sizes see the same windows of one world in the same order, for as many steps, and choose their
learning rate by the same trials on a seed that the report does not use.
"""

from functools import partial

import pandas as pd

from benchmarks.reports.blocks import SuiteReport
from benchmarks.runs.tasks import Task
from benchmarks.scaling.presets import (
    METHODS,  # noqa: F401, what `load_suite` reads
    PRESETS,  # noqa: F401
    SIZES,
    ScalingPreset,
)
from benchmarks.scaling.report import make_report
from benchmarks.scaling.train import WORLD_SEED
from benchmarks.settings import Settings
from benchmarks.worlds import needs_world, open_world, world_tasks


def make_tasks(settings: Settings[ScalingPreset]) -> list[Task]:
    """Return the world, tuning and every (size, seed)."""
    tasks = world_tasks(settings, [WORLD_SEED], cost=5.0)
    made = needs_world(settings.world, WORLD_SEED)
    for size in settings.methods:
        tuned = settings.tuned_file(size)
        cost = 1.0 + SIZES[size].dim ** 2 * SIZES[size].num_hsd_layers / 4_000
        task = partial(
            settings.task, cost=cost, world=settings.world, size=size, sizes=settings.sizes
        )
        needs = made
        if tuned is not None:
            needs = (*made, f"tuning {size}")
            tasks.append(
                task(needs[-1], "scaling.train:run_trial", needs=made, files=(tuned,), output=tuned)
            )
        tasks += [
            task(
                f"{size}, seed {seed}",
                "scaling.train:run_size",
                needs=needs,
                seed=seed,
                tuned=tuned,
            )
            for seed in settings.seeds
        ]
    return tasks


def finish(settings: Settings, results: pd.DataFrame) -> SuiteReport:
    """Return the report of a finished run."""
    tuned = {size: settings.tuned_file(size) for size in settings.methods}
    return make_report(results, settings, open_world(settings.world, WORLD_SEED).info, tuned)
