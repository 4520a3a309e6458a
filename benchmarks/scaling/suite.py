"""Fig. 5: how the loss falls with the size of the HHD, from 10,000 to 10 million parameters.

All sizes see the same windows of one world in the same order, for as many steps, and choose their
learning rate by the same trials on a seed that the report does not use.
"""

from typing import Any

import pandas as pd

from benchmarks.reports.blocks import SuiteReport
from benchmarks.runs.plan import Plan, tuned_file
from benchmarks.runs.tasks import Task
from benchmarks.scaling.presets import (
    METHODS,  # noqa: F401, what `load_suite` reads
    PRESETS,  # noqa: F401
    SIZES,
)
from benchmarks.scaling.report import make_report
from benchmarks.scaling.train import WORLD_SEED, study_world
from benchmarks.settings import Settings
from benchmarks.worlds import needs_world, world_tasks


def make_tasks(settings: Settings) -> list[Task]:
    """Return the world, tuning and every (size, seed)."""
    world, sizes = settings.world, settings.sizes
    plan = Plan(settings.out, world_tasks(world, [WORLD_SEED], settings.out, cost=5.0))
    made = needs_world(world, WORLD_SEED)
    train = "benchmarks.scaling.train"
    for size in settings.methods:
        tuned = tuned_file(settings.out, settings.sizes, size)
        cost = 1.0 + SIZES[size].dim ** 2 * SIZES[size].num_hsd_layers / 4_000
        shared: dict[str, Any] = {"world": world, "size": size, "sizes": sizes}
        needs = made
        if tuned is not None:
            tuning = plan.add(
                f"tuning {size}",
                f"{train}:run_trial",
                needs=made,
                files=(tuned,),
                cost=cost,
                **shared,
                output=tuned,
            )
            needs = (*made, tuning.name)
        for seed in settings.seeds:
            plan.add(
                f"{size}, seed {seed}",
                f"{train}:run_size",
                needs=needs,
                cost=cost,
                **shared,
                seed=seed,
                tuned=tuned,
            )
    return plan.tasks


def finish(settings: Settings, results: pd.DataFrame) -> SuiteReport:
    """Return the report of a finished run."""
    tuned = {size: tuned_file(settings.out, settings.sizes, size) for size in settings.methods}
    return make_report(results, settings, study_world(settings.world).info, tuned)
