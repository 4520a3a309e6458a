"""Tab. 3: does value alignment work? HEPO against PPO, GRPO, DPO, RSPO and others, with ablations.

Every seed draws a world, its rankers and a warm start of its own; all methods of a seed start from
the same weights and meet the same requests, random streams and number of ranker evaluations, so
methods are compared inside a seed. Markets change the world's rules, ablations one thing of a
method, and tuning gives every method the same number of trials on seeds of their own.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from benchmarks.alignment.page.report import make_report
from benchmarks.alignment.presets import (
    METHODS,  # noqa: F401
    PRESETS,  # noqa: F401
    SUPERVISED,
    SUPERVISED_SPACES,
    AlignmentSettings,
)
from benchmarks.alignment.rows import Row, rows_of, seeds_on
from benchmarks.alignment.setup import checkpoint
from benchmarks.alignment.tuning import ERROR, SCORE, trial_settings
from benchmarks.plugins import import_methods
from benchmarks.reports.blocks import SuiteReport
from benchmarks.runs.tasks import Task
from benchmarks.runs.trials import trial_tasks
from benchmarks.worlds import BASE, needs_world, on_market, open_world, world_tasks


def make_tasks(settings: AlignmentSettings) -> list[Task]:
    """Return worlds, warm starts and tuning, then every (row, seed) pair, the base market first.

    Seed by seed, so that a run that is stopped has all rows of some seeds.
    """
    rows = rows_of(settings)
    plain = {r: seeds for r, seeds in rows.items() if r.market == BASE and not r.ablation}
    others = {row: seeds for row, seeds in rows.items() if row not in plain}
    tasks = _start_tasks(settings, BASE, settings.seeds)
    tasks += _tuning_tasks(settings, sorted({r.method for r in rows if _is_tuned(r.method)}))
    tasks += _row_tasks(settings, plain)
    for market in settings.markets:
        tasks += _start_tasks(settings, market, seeds_on(market, rows, settings))
    return tasks + _row_tasks(settings, others)


def _task(settings: AlignmentSettings, name: str, function: str, **more: Any) -> Task:
    known = replace(settings, methods=(), seeds=(), markets=(), ablations=())  # no task sees others
    return settings.task(name, f"alignment.{function}", settings=known, **more)


def _warm_name(market: str, seed: int) -> str:
    return on_market(f"warm start, seed {seed}", market)


def _start_tasks(settings: AlignmentSettings, market: str, seeds: tuple[int, ...]) -> list[Task]:
    """Return the worlds of a market and the warm starts that its methods share."""
    names = ("mtp", "vaft", "evaluation")
    starts = [
        _task(
            settings,
            _warm_name(market, seed),
            "start:prepare_seed",
            needs=needs_world(settings.world, seed, market),
            files=tuple(checkpoint(settings.out, name, seed, market) for name in names),
            cost=2.0,
            market=market,
            seed=seed,
        )
        for seed in seeds
    ]
    return [*world_tasks(settings, seeds, market=market), *starts]


def _is_tuned(method: str) -> bool:
    return method not in SUPERVISED or method in SUPERVISED_SPACES


def _row_tasks(settings: AlignmentSettings, rows: Mapping[Row, tuple[int, ...]]) -> list[Task]:
    return [
        _row_task(settings, row, seed)
        for seed in settings.seeds
        for row, seeds in rows.items()
        if seed in seeds
    ]


def _row_task(settings: AlignmentSettings, row: Row, seed: int) -> Task:
    needs: tuple[str, ...] = (_warm_name(row.market, seed),)
    if settings.tuning_seeds and _is_tuned(row.method):
        needs = (*needs, f"choose {row.method}")
    function = "train:run_supervised" if row.method in SUPERVISED else "train:run_row"
    files = (checkpoint(settings.out, str(row), seed),)
    return _task(
        settings, f"{row}, seed {seed}", function, needs=needs, files=files, seed=seed, row=row
    )


def _tuning_tasks(settings: AlignmentSettings, methods: list[str]) -> list[Task]:
    """Return the tuning seeds' warm starts, every (method, trial, seed) and the choices."""
    plan = settings.sizes.tuning
    if not plan.num_trials or not methods:
        return []
    tasks = world_tasks(settings, plan.seeds)
    needs = {seed: (f"tuning start, seed {seed}",) for seed in plan.seeds}
    for seed, (name,) in needs.items():
        made = needs_world(settings.world, seed)
        tasks.append(
            _task(settings, name, "tuning:prepare_tuning", needs=made, cost=2.0, seed=seed)
        )
    import_methods(settings.plugins)  # their search spaces
    for method in methods:
        choice = settings.tuned_file(method)
        assert choice is not None
        run = "tuning:run_trial"
        trial = _task(settings, method, run, cost=0.5, method=method)
        tried = trial_settings(method, settings.sizes)
        how = {"metrics": (SCORE,), "sign": -1.0, "error": ERROR}
        tasks += trial_tasks(trial, tried, needs, choice, **how)
    return tasks


def finish(settings: AlignmentSettings, results: pd.DataFrame) -> SuiteReport:
    """Return the report of a finished run."""
    import_methods(settings.plugins)
    info = open_world(settings.world, settings.seeds[0]).info
    return make_report(results, settings, info)
