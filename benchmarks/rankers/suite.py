"""Can the reward simulator be trusted? Cards of the frozen rankers, by vertical and age of the ad.

Every seed has a world of its own; the built-in rankers are graded beside LightGBM (where it is
installed), fitted, calibrated and graded on the same days.
"""

import importlib.util
import runpy
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from benchmarks.measure.timing import timed
from benchmarks.rankers.report import make_report
from benchmarks.reports.blocks import SuiteReport
from benchmarks.runs.results import applicable, tidy
from benchmarks.runs.tasks import Task
from benchmarks.settings import Settings
from benchmarks.worlds import needs_world, open_world, world_tasks
from simulators.rankers.cards import ranker_card, ranker_reliability
from simulators.rankers.custom import use_rankers
from simulators.synthetic.worth import grade_regime
from simulators.world import World

SUITE = "rankers"
NETWORK, TREES = "network", "lightgbm"
METHODS = (NETWORK, *((TREES,) if importlib.util.find_spec("lightgbm") else ()))
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "lightgbm_rankers.py"


@dataclass(frozen=True, kw_only=True)
class RankersPreset:
    """Sizes of one preset."""

    world: str = "small"
    """Default world."""
    num_seeds: int = 3
    num_trees: int = 200
    """Boosting rounds of LightGBM, for clicks and for conversions."""
    num_bins: int = 20
    """Bins of the reliability diagrams, of equal size."""
    num_requests: int = 64
    """Requests that the speed is measured on."""
    num_candidates: int = 40
    """Candidates per request, as in serving."""


PRESETS = {
    "smoke": RankersPreset(world="tiny", num_seeds=2, num_trees=60, num_bins=10),
    "quick": RankersPreset(),
    "paper": RankersPreset(num_seeds=10),
}


def _card_rows(world: World, method: str, seed: int, num_bins: int) -> list[pd.DataFrame]:
    """Return the grades by task and group, and the means by bin of the reliability diagrams."""
    rows = [
        tidy(SUITE, method, seed, applicable(grades), task=task, group=group)
        for task, groups in ranker_card(world).items()
        for group, grades in groups.items()
    ]
    for task, bins in ranker_reliability(world, num_bins).items():
        for number, values in enumerate(bins, start=1):
            means = dict(zip(("predicted", "observed", "num_rows"), values, strict=True))
            rows.append(tidy(SUITE, method, seed, applicable(means), task=task, bin=number))
    return rows


def _speed_metrics(world: World, sizes: RankersPreset) -> dict[str, float]:
    """Return candidate scores per second with everything that a score needs; the best of three."""
    ids = world.request_ids("test")[: sizes.num_requests]
    ads = torch.arange(len(ids) * sizes.num_candidates).view(len(ids), -1) % world.num_ads
    run = timed(lambda: world.outcome(ids, ads))
    return {"scores_per_s": ads.numel() / min(run() for _ in range(3))}


def run_method(*, world: str, seed: int, method: str, sizes: RankersPreset) -> pd.DataFrame:
    """Return the grades of one kind of rankers on one world, as tidy rows."""
    graded = open_world(world, seed)
    metrics: dict[str, float] = {}
    if method == NETWORK:
        regime = graded.ranker_card.get("regime", {})
    else:
        started = time.perf_counter()
        made = runpy.run_path(str(EXAMPLE))["LightGBMRankers"]
        graded = use_rankers(graded, made(graded, num_trees=sizes.num_trees))
        metrics["fit_s"] = time.perf_counter() - started
        regime = grade_regime(graded) if graded.info.has_truth else {}
    metrics |= {f"regime/{k}": v for k, v in regime.items() if not isinstance(v, str)}
    metrics |= _speed_metrics(graded, sizes)
    rows = _card_rows(graded, method, seed, sizes.num_bins)
    return pd.concat([*rows, tidy(SUITE, method, seed, applicable(metrics))])


def make_tasks(settings: Settings) -> list[Task]:
    """Return the worlds, then every (method, seed) pair."""
    rows = [
        settings.task(
            f"{method}, seed {seed}",
            "rankers.suite:run_method",
            needs=needs_world(settings.world, seed),
            cost=0.2 if method == NETWORK else 1.0,
            world=settings.world,
            seed=seed,
            method=method,
            sizes=settings.sizes,
        )
        for seed in settings.seeds
        for method in settings.methods
    ]
    return world_tasks(settings, settings.seeds) + rows


def finish(settings: Settings, results: pd.DataFrame) -> SuiteReport:
    """Return the report of a finished run."""
    info = open_world(settings.world, settings.seeds[0]).info
    return make_report(results, methods=settings.methods, info=info, seeds=settings.seeds)
