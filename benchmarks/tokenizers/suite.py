"""Tab. 1: which tokenizer makes the best semantic IDs? RQ-KMeans+ against its rivals and UA-SID.

All tokenizers get the same items, the same number of paths and the same number of tuning trials on
items that the test does not use; every seed draws items, hold-out and start anew. UA-SID's last
level is a hash of business keys, so its rows are no rival of the others on content alone.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.reports.blocks import SuiteReport
from benchmarks.runs.plan import Plan, tuned_file
from benchmarks.runs.tasks import Task
from benchmarks.settings import Settings
from benchmarks.tokenizers.catalogues import CATALOGUES, FILE, JOURNEY
from benchmarks.tokenizers.presets import (
    METHODS,  # noqa: F401, what `load_suite` reads
    PRESETS,  # noqa: F401
    TokenizersPreset,
    row_name,
)
from benchmarks.tokenizers.report import make_report

_READ_JOURNEY = "items of journey"


def catalogues_of(settings: Settings) -> tuple[str, ...]:
    """Return the catalogues of a run: those at hand, and the user's file."""
    return (*CATALOGUES, FILE) if settings.embeddings else CATALOGUES


def make_tasks(settings: Settings) -> list[Task]:
    """Return speed, tuning and every (tokenizer, catalogue, seed)."""
    plan = Plan(settings.out)
    if JOURNEY in catalogues_of(settings):
        path = _journey_file(settings)
        write = "benchmarks.tokenizers.catalogues:write_journey"
        plan.add(_READ_JOURNEY, write, files=(path,), path=path)
    for catalogue in catalogues_of(settings):
        for method in settings.methods:
            _add_row(plan, settings, method, catalogue)
    plan.add(
        "speed",
        "benchmarks.tokenizers.speed:measure_speed",
        needs=plan.names,  # alone: it measures with two threads
        cost=4.0,
        seed=settings.seeds[0],
        sizes=settings.sizes,
    )
    return plan.tasks


def _journey_file(settings: Settings) -> Path:
    return settings.out / "catalogues" / "journey.parquet"


def _add_row(plan: Plan, settings: Settings, method: str, catalogue: str) -> None:
    sizes = settings.sizes
    assert isinstance(sizes, TokenizersPreset)
    row, fit = row_name(method, catalogue), "benchmarks.tokenizers.fit"
    shared: dict[str, Any] = {
        "catalogue": catalogue,
        "world": settings.world,
        "source": _journey_file(settings) if catalogue == JOURNEY else settings.embeddings,
        "method": method,
        "sizes": sizes,
    }
    cost = 5.0 if method in ("rq_vae", "rq_kmeans_plus") else 1.0
    tuned = tuned_file(settings.out, settings.sizes, row)
    before = (_READ_JOURNEY,) if catalogue == JOURNEY else ()
    needs = before
    if tuned is not None:
        chosen = plan.add_tuning(
            row,
            fit,
            num_trials=sizes.num_trials,
            seeds=sizes.tuning_seeds,
            needs=lambda _: before,
            shared=shared,
            choice={
                "method": method,
                "catalogue": catalogue,
                "num_trials": sizes.num_trials,
                "output": tuned,
            },
            cost=cost,
        )
        needs = (chosen.name,)
    for seed in settings.seeds:
        plan.add(
            f"{row}, seed {seed}",
            f"{fit}:run_row",
            needs=needs,
            cost=cost,
            **shared,
            seed=seed,
            tuned=tuned,
        )


def finish(settings: Settings, results: pd.DataFrame) -> SuiteReport:
    """Return the report of a finished run."""
    tuned = {
        (method, catalogue): tuned_file(settings.out, settings.sizes, row_name(method, catalogue))
        for catalogue in catalogues_of(settings)
        for method in settings.methods
    }
    return make_report(results, settings, catalogues_of(settings), tuned)
