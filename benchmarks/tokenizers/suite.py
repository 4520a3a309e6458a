"""Tab. 1: which tokenizer makes the best semantic IDs? RQ-KMeans+ against its rivals and UA-SID.

All tokenizers get the same items, the same number of paths and the same number of tuning trials on
items that the test does not use; every seed draws items, hold-out and start anew. UA-SID's last
level is a hash of business keys, so its rows are no rival of the others on content alone.
"""

from functools import partial
from pathlib import Path

import pandas as pd

from benchmarks.reports.blocks import SuiteReport
from benchmarks.runs.tasks import Task
from benchmarks.runs.trials import trial_tasks
from benchmarks.settings import Settings
from benchmarks.tokenizers.catalogues import CATALOGUES, FILE, JOURNEY
from benchmarks.tokenizers.fit import SCORE, trial_settings
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


def make_tasks(settings: Settings[TokenizersPreset]) -> list[Task]:
    """Return speed, tuning and every (tokenizer, catalogue, seed)."""
    tasks = []
    if JOURNEY in catalogues_of(settings):
        path = _journey_file(settings)
        write = "tokenizers.catalogues:write_journey"
        tasks.append(settings.task(_READ_JOURNEY, write, files=(path,), path=path))
    for catalogue in catalogues_of(settings):
        for method in settings.methods:
            tasks += _tasks_of(settings, method, catalogue)
    speed = settings.task(
        "speed",
        "tokenizers.speed:measure_speed",
        needs=tuple(task.name for task in tasks),  # alone: it measures with two threads
        cost=4.0,
        seed=settings.seeds[0],
        sizes=settings.sizes,
    )
    return [*tasks, speed]


def _journey_file(settings: Settings) -> Path:
    return settings.out / "catalogues" / "journey.parquet"


def _tasks_of(settings: Settings[TokenizersPreset], method: str, catalogue: str) -> list[Task]:
    row, sizes, from_journey = row_name(method, catalogue), settings.sizes, catalogue == JOURNEY
    task = partial(
        settings.task,
        cost=5.0 if method in ("rq_vae", "rq_kmeans_plus") else 1.0,
        method=method,
        items={
            "name": catalogue,
            "world": settings.world,
            "source": _journey_file(settings) if from_journey else settings.embeddings,
            "max_items": sizes.max_items,
            "text_dim": sizes.text_dim,
        },
    )
    tuned = settings.tuned_file(row)
    needs = (_READ_JOURNEY,) if from_journey else ()
    tasks: list[Task] = []
    if tuned is not None:
        tried = trial_settings(method, sizes.num_trials)
        before = dict.fromkeys(sizes.tuning_seeds, needs)
        metrics = (SCORE, "reconstruction_error")
        trial = task(row, "tokenizers.fit:run_trial", num_trials=sizes.num_trials)
        tasks = trial_tasks(trial, tried, before, tuned, metrics=metrics)
        needs = (f"choose {row}",)
    run = "tokenizers.fit:run_row"
    rows = [
        task(f"{row}, seed {seed}", run, needs=needs, seed=seed, tuned=tuned)
        for seed in settings.seeds
    ]
    return [*tasks, *rows]


def finish(settings: Settings, results: pd.DataFrame) -> SuiteReport:
    """Return the report of a finished run."""
    tuned = {
        (method, catalogue): settings.tuned_file(row_name(method, catalogue))
        for catalogue in catalogues_of(settings)
        for method in settings.methods
    }
    return make_report(results, settings, catalogues_of(settings), tuned)
