"""Tab. 3: does value alignment work? HEPO against PPO, GRPO, DPO, RSPO and others, with ablations.

Every seed draws a world, its rankers and a warm start of its own; all methods of a seed start from
the same weights and meet the same requests, random streams and number of ranker evaluations, so
methods are compared inside a seed. Markets change the world's rules, ablations one thing of a
method, and tuning gives every method the same number of trials on seeds of their own.
"""

from pathlib import Path

import pandas as pd

from benchmarks.alignment.ablations import ABLATIONS  # noqa: F401, what `load_suite` reads
from benchmarks.alignment.presets import (
    MARKETS,
    METHODS,  # noqa: F401
    PRESETS,  # noqa: F401
    SUPERVISED,
    AlignmentPreset,
)
from benchmarks.alignment.report import make_report
from benchmarks.alignment.rows import Row, rows_of, seeds_on
from benchmarks.alignment.setup import checkpoint
from benchmarks.alignment.tuning import SCORE, trial_settings, tuned_file
from benchmarks.plugins import import_methods
from benchmarks.reports.blocks import SuiteReport
from benchmarks.runs.tasks import Task
from benchmarks.runs.trials import trial_tasks
from benchmarks.suite import Settings
from benchmarks.worlds import BASE, needs_world, on_market, open_market, world_tasks

IS_EXTENDABLE = TAKES_METHODS = TAKES_REWARDS = TAKES_LOGGER = True
SYNTHETIC_ONLY = (*MARKETS, "arr")
"""Other worlds have one set of dials, and know only what could be shown to logged requests."""


def make_tasks(settings: Settings) -> list[Task]:
    """Return worlds, warm starts and tuning, then every (row, seed) pair, the base market first."""
    rows = rows_of(settings)
    tasks = _shared_tasks(settings, BASE, settings.seeds)
    tasks += _tuning_tasks(settings, sorted({row.method for row in rows} - set(SUPERVISED)))
    plain = {r: seeds for r, seeds in rows.items() if r.market == BASE and not r.ablation}
    tasks += [_row_task(settings, row, seed) for row, seeds in plain.items() for seed in seeds]
    for market in settings.markets:
        tasks += _shared_tasks(settings, market, seeds_on(market, rows, settings))
    others = {row: seeds for row, seeds in rows.items() if row not in plain}
    tasks += [_row_task(settings, row, seed) for row, seeds in others.items() for seed in seeds]
    return tasks


def _shared_tasks(settings: Settings, market: str, seeds: tuple[int, ...]) -> list[Task]:
    """Return the worlds of a market and the warm starts that its methods share."""
    starts = [_warm_start(settings, market, seed) for seed in seeds]
    return [*_world_tasks(settings, market, seeds), *starts]


def _shared(settings: Settings) -> dict[str, object]:
    return {
        "out": settings.out,
        "world": settings.world,
        "reward": settings.reward,
        "sizes": settings.sizes,
    }


def _world_tasks(settings: Settings, market: str, seeds: tuple[int, ...]) -> list[Task]:
    return world_tasks(settings.world, seeds, settings.out, market=market)


def _part(settings: Settings, name: str, seed: int) -> Path:
    return settings.out / "parts" / f"{name}-seed{seed}.parquet"


def _warm_name(market: str, seed: int) -> str:
    return on_market(f"warm start, seed {seed}", market)


def _warm_start(settings: Settings, market: str, seed: int) -> Task:
    files = ("mtp", "vaft", "evaluation")
    return Task(
        name=_warm_name(market, seed),
        function="benchmarks.alignment.setup:prepare_seed",
        kwargs={**_shared(settings), "market": market, "seed": seed},
        needs=needs_world(settings.world, seed, market),
        output=_part(settings, on_market("warm", market), seed),
        files=tuple(checkpoint(settings.out, name, seed, market) for name in files),
        cost=2.0,
    )


def _row_task(settings: Settings, row: Row, seed: int) -> Task:
    needs: tuple[str, ...] = (_warm_name(row.market, seed),)
    name = str(row)
    if row.method in SUPERVISED:
        function, more = "benchmarks.alignment.train:run_vsl", {}
    else:
        function = "benchmarks.alignment.train:run_row"
        tuned = tuned_file(settings, row.method)
        more = {
            "row": row,
            "tuned": tuned,
            "plugins": settings.plugins,
            "resume": settings.resume,
            "logger": settings.logger,
        }
        needs = (*needs, f"choose {row.method}") if tuned else needs
    return Task(
        name=f"{name}, seed {seed}",
        function=function,
        kwargs={**_shared(settings), "seed": seed, **more},
        needs=needs,
        output=_part(settings, name, seed),
        files=(checkpoint(settings.out, name, seed),),
    )


def _tuning_tasks(settings: Settings, methods: list[str]) -> list[Task]:
    """Return the tuning seeds' warm starts, every (method, trial, seed) and the choices."""
    sizes = settings.sizes
    assert isinstance(sizes, AlignmentPreset)
    plan = sizes.tuning
    if not plan.num_trials or not methods:
        return []
    shared = _shared(settings)
    tasks = _world_tasks(settings, BASE, plan.seeds)
    for seed in plan.seeds:
        tasks.append(
            Task(
                name=f"tuning start, seed {seed}",
                function="benchmarks.alignment.tuning:prepare_tuning",
                kwargs={**shared, "seed": seed},
                needs=needs_world(settings.world, seed),
                output=_part(settings, "tuning", seed),
                cost=2.0,
            )
        )
    import_methods(settings.plugins)  # their search spaces
    needs = {seed: (f"tuning start, seed {seed}",) for seed in plan.seeds}
    for method in methods:
        choice = tuned_file(settings, method)
        assert choice is not None
        trial = Task(
            name="",
            function="benchmarks.alignment.tuning:run_trial",
            kwargs={**shared, "method": method, "plugins": settings.plugins},
            output=choice,
            cost=0.5,
        )
        tried = trial_settings(method, plan.num_trials)
        tasks += trial_tasks(method, trial, tried, needs, {"metrics": (SCORE,), "sign": -1.0})
    return tasks


def finish(settings: Settings, results: pd.DataFrame) -> SuiteReport:
    """Return the report of a finished run."""
    import_methods(settings.plugins)
    info = open_market(settings.world, BASE, settings.seeds[0]).info
    return make_report(results, settings, info)
