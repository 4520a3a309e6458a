"""Tab. 3: does value alignment work? HEPO against PPO, GRPO, DPO, RSPO and others, with ablations.

Every seed draws a world, its rankers and a warm start of its own; all methods of a seed start from
the same weights and meet the same requests, random streams and number of ranker evaluations, so
methods are compared inside a seed. Markets change the world's rules, ablations one thing of a
method, and tuning gives every method the same number of trials on seeds of their own.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from benchmarks.alignment.presets import (
    METHODS,  # noqa: F401
    PRESETS,  # noqa: F401
    SUPERVISED,
    AlignmentPreset,
)
from benchmarks.alignment.report import make_report
from benchmarks.alignment.rows import Row, rows_of, seeds_on
from benchmarks.alignment.setup import checkpoint
from benchmarks.alignment.tuning import tuned_file
from benchmarks.plugins import import_methods
from benchmarks.reports.blocks import SuiteReport
from benchmarks.runs.plan import Plan
from benchmarks.runs.tasks import Task
from benchmarks.settings import Settings
from benchmarks.worlds import BASE, needs_world, on_market, open_market, world_tasks


def make_tasks(settings: Settings) -> list[Task]:
    """Return worlds, warm starts and tuning, then every (row, seed) pair, the base market first."""
    rows = rows_of(settings)
    plan = Plan(settings.out)
    _add_starts(plan, settings, BASE, settings.seeds)
    _add_tuning(plan, settings, sorted({row.method for row in rows} - set(SUPERVISED)))
    plain = {r: seeds for r, seeds in rows.items() if r.market == BASE and not r.ablation}
    _add_rows(plan, settings, plain)
    for market in settings.markets:
        _add_starts(plan, settings, market, seeds_on(market, rows, settings))
    _add_rows(plan, settings, {row: seeds for row, seeds in rows.items() if row not in plain})
    return plan.tasks


def _shared(settings: Settings) -> dict[str, Any]:
    return {
        "out": settings.out,
        "world": settings.world,
        "reward": settings.reward,
        "sizes": settings.sizes,
    }


def _warm_name(market: str, seed: int) -> str:
    return on_market(f"warm start, seed {seed}", market)


def _add_starts(plan: Plan, settings: Settings, market: str, seeds: tuple[int, ...]) -> None:
    """Add the worlds of a market and the warm starts that its methods share."""
    plan.tasks += world_tasks(settings.world, seeds, plan.out, market=market)
    for seed in seeds:
        files = (on_market(name, market) for name in ("mtp", "vaft", "evaluation"))
        plan.add(
            _warm_name(market, seed),
            "benchmarks.alignment.setup:prepare_seed",
            needs=needs_world(settings.world, seed, market),
            files=tuple(checkpoint(plan.out, file, seed) for file in files),
            cost=2.0,
            **_shared(settings),
            market=market,
            seed=seed,
        )


def _add_rows(plan: Plan, settings: Settings, rows: Mapping[Row, tuple[int, ...]]) -> None:
    for row, seed in ((row, seed) for row, seeds in rows.items() for seed in seeds):
        needs: tuple[str, ...] = (_warm_name(row.market, seed),)
        name, function = str(row), "run_vsl"
        more: dict[str, Any] = {}
        if row.method not in SUPERVISED:
            function, tuned = "run_row", tuned_file(settings, row.method)
            more = {
                "row": name,
                "tuned": tuned,
                "plugins": settings.plugins,
                "resume": settings.resume,
                "logger": settings.logger,
            }
            needs = (*needs, f"choose {row.method}") if tuned else needs
        plan.add(
            f"{name}, seed {seed}",
            f"benchmarks.alignment.train:{function}",
            needs=needs,
            files=(checkpoint(plan.out, name, seed),),
            **_shared(settings),
            seed=seed,
            **more,
        )


def _add_tuning(plan: Plan, settings: Settings, methods: list[str]) -> None:
    """Add the tuning seeds' warm starts, every (method, trial, seed) and the choices."""
    sizes = settings.sizes
    assert isinstance(sizes, AlignmentPreset)
    num_trials, seeds = sizes.tuning.num_trials, sizes.tuning.seeds
    if not num_trials or not methods:
        return
    module = "benchmarks.alignment.tuning"
    plan.tasks += world_tasks(settings.world, seeds, plan.out)
    for seed in seeds:
        plan.add(
            f"tuning start, seed {seed}",
            f"{module}:prepare_tuning",
            needs=needs_world(settings.world, seed),
            cost=2.0,
            **_shared(settings),
            seed=seed,
        )
    for method in methods:
        own: dict[str, Any] = {"method": method, "plugins": settings.plugins}
        plan.add_tuning(
            method,
            module,
            num_trials=num_trials,
            seeds=seeds,
            needs=lambda seed: (f"tuning start, seed {seed}",),
            shared={**_shared(settings), **own},
            choice={**own, "sizes": sizes, "output": tuned_file(settings, method)},
            cost=0.5,
        )


def finish(settings: Settings, results: pd.DataFrame) -> SuiteReport:
    """Return the report of a finished run."""
    import_methods(settings.plugins)
    info = open_market(settings.world, BASE, settings.seeds[0]).info
    return make_report(results, settings, info)
