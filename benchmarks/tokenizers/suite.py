"""Tab. 1: which tokenizer makes the best semantic IDs? RQ-KMeans+ against its rivals and UA-SID.

All tokenizers get the same items, the same number of paths and the same number of tuning trials on
items that the test does not use; every seed draws items, hold-out and start anew. UA-SID's last
level is a hash of business keys, so its rows are no rival of the others on content alone.
"""

from pathlib import Path

import pandas as pd

from benchmarks.reports.blocks import SuiteReport
from benchmarks.runs.tasks import Task
from benchmarks.runs.trials import trial_tasks
from benchmarks.suite import Settings
from benchmarks.tokenizers.catalogues import CATALOGUES, FILE, JOURNEY
from benchmarks.tokenizers.fit import SCORE, trial_settings
from benchmarks.tokenizers.presets import (
    MACHINE,
    METHODS,  # noqa: F401, what `load_suite` reads
    PRESETS,  # noqa: F401
    TokenizersPreset,
    row_name,
)
from benchmarks.tokenizers.report import make_report

TAKES_EMBEDDINGS = True
_READ_JOURNEY = "items of journey"


def catalogues_of(settings: Settings) -> tuple[str, ...]:
    """Return the catalogues of a run: those at hand, and the user's file."""
    return (*CATALOGUES, FILE) if settings.embeddings else CATALOGUES


def tuned_file(settings: Settings, method: str, catalogue: str) -> Path | None:
    """Return where a choice is kept; None where a run does not tune."""
    assert isinstance(settings.sizes, TokenizersPreset)
    if not settings.sizes.num_trials:
        return None
    return settings.out / "tuning" / f"{row_name(method, catalogue)}.json"


def make_tasks(settings: Settings) -> list[Task]:
    """Return speed, tuning and every (tokenizer, catalogue, seed)."""
    sizes = settings.sizes
    assert isinstance(sizes, TokenizersPreset)
    tasks = []
    if JOURNEY in catalogues_of(settings):
        path = _journey_file(settings)
        tasks.append(
            Task(
                name=_READ_JOURNEY,
                function="benchmarks.tokenizers.catalogues:write_journey",
                kwargs={"path": path},
                output=_part(settings, "journey-items"),
                files=(path,),
            )
        )
    for catalogue in catalogues_of(settings):
        for method in settings.methods:
            tasks += _tasks_of(settings, sizes, method, catalogue)
    tasks.append(
        Task(
            name="speed",
            function="benchmarks.tokenizers.speed:measure_speed",
            kwargs={"seed": settings.seeds[0], "sizes": sizes},
            needs=tuple(task.name for task in tasks),  # alone: it measures with two threads
            output=_part(settings, MACHINE),
            cost=4.0,
        )
    )
    return tasks


def _journey_file(settings: Settings) -> Path:
    return settings.out / "catalogues" / "journey.parquet"


def _part(settings: Settings, name: str) -> Path:
    return settings.out / "parts" / f"{name}.parquet"


def _tasks_of(
    settings: Settings, sizes: TokenizersPreset, method: str, catalogue: str
) -> list[Task]:
    row = row_name(method, catalogue)
    shared: dict[str, object] = {
        "catalogue": catalogue,
        "world": settings.world,
        "source": _journey_file(settings) if catalogue == JOURNEY else settings.embeddings,
        "method": method,
        "sizes": sizes,
    }
    cost = 5.0 if method in ("rq_vae", "rq_kmeans_plus") else 1.0
    tuned = tuned_file(settings, method, catalogue)
    before = (_READ_JOURNEY,) if catalogue == JOURNEY else ()
    tasks: list[Task] = []
    if tuned is not None:
        trial = Task(
            name="",
            function="benchmarks.tokenizers.fit:run_trial",
            kwargs=shared,
            output=tuned,
            cost=cost,
        )
        needs = dict.fromkeys(sizes.tuning_seeds, before)
        metrics = {"metrics": (SCORE, "reconstruction_error")}
        tasks += trial_tasks(row, trial, trial_settings(method, sizes.num_trials), needs, metrics)
    for seed in settings.seeds:
        tasks.append(
            Task(
                name=f"{row}, seed {seed}",
                function="benchmarks.tokenizers.fit:run_row",
                kwargs={**shared, "seed": seed, "tuned": tuned},
                needs=(f"choose {row}",) if tuned is not None else before,
                output=_part(settings, f"{row}-seed{seed}"),
                cost=cost,
            )
        )
    return tasks


def finish(settings: Settings, results: pd.DataFrame) -> SuiteReport:
    """Return the report of a finished run."""
    tuned = {
        (method, catalogue): tuned_file(settings, method, catalogue)
        for catalogue in catalogues_of(settings)
        for method in settings.methods
    }
    return make_report(results, settings, catalogues_of(settings), tuned)
