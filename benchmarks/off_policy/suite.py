"""Off-policy evaluation against the known truth: which estimator can be trusted, and how far.

Per seed a synthetic world is logged by its production system, whose propensities are known. Every
estimator judges the same target policies from the same logs; what each policy is really worth is
an exact expectation under the hidden truth.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from agents.off_policy import Feedback, log_of_distribution
from agents.warm_start import build_model, train_mtp
from benchmarks.errors import UserError
from benchmarks.off_policy.grades import Found, Truth, grade, judge_ads, judge_slates
from benchmarks.off_policy.presets import (
    AD_METHODS,
    METHODS,  # noqa: F401, what `load_suite` reads
    PRESETS,  # noqa: F401
    SLATE_METHODS,
    SUITE,
    OffPolicyPreset,
)
from benchmarks.off_policy.report import make_report
from benchmarks.off_policy.tables import Tables, make_tables
from benchmarks.reports.blocks import SuiteReport
from benchmarks.runs.plan import Plan
from benchmarks.runs.results import tidy
from benchmarks.runs.tasks import Task
from benchmarks.settings import Settings
from gpr_rl.policy import load_policy, save_policy
from simulators.make import load_world, world_names
from simulators.progress import silent
from simulators.rewards import RewardMix
from simulators.synthetic.config import PRESETS as SYNTHETIC
from simulators.synthetic.evaluator import TruthEvaluator
from simulators.world import World

KINDS = {"ads": AD_METHODS, "slates": SLATE_METHODS}


def _world(name: str, seed: int) -> World:
    """Return the world of a run's seed: a synthetic one is drawn anew for each."""
    return load_world(name, seed=seed if name in SYNTHETIC else 0, progress=silent)


def _policy_file(out: Path, seed: int) -> Path:
    return out / "checkpoints" / f"hhd-seed{seed}.safetensors"


def _log_file(out: Path, seed: int) -> Path:
    return out / "logs" / f"behavior-seed{seed}.parquet"


def prepare_seed(*, out: Path, world: str, seed: int, sizes: OffPolicyPreset) -> None:
    """Make the world if need be, train the HHD that is one of the target policies, export a log."""
    loaded = _world(world, seed)
    if not loaded.info.has_truth:
        raise UserError(_no_truth(world))
    model = build_model(loaded, sizes.warm_start.model, seed)
    train_mtp(model, loaded, sizes.warm_start, seed)
    model.eval()
    save_policy(model, _policy_file(out, seed), world=world, method="mtp", seed=seed)
    ids = loaded.request_ids("test")[: sizes.num_requests]
    truth = TruthEvaluator(loaded)
    probability = truth.logging_distribution(ids)
    log = log_of_distribution(loaded, ids, probability, seed=seed, feedback=Feedback(truth=truth))
    log.to_parquet(_log_file(out, seed))


def judge(
    *,
    out: Path,
    world: str,
    reward: tuple[str, ...],
    seed: int,
    sizes: OffPolicyPreset,
    kind: str,
    methods: tuple[str, ...],
) -> pd.DataFrame:
    """Return the grades of all estimators of one kind (`ads` or `slates`) on one seed."""
    loaded = _world(world, seed)
    model = load_policy(_policy_file(out, seed))
    mix = RewardMix.from_specs(list(reward))
    count = sizes.num_requests if kind == "ads" else sizes.num_slate_requests
    tables = make_tables(loaded, mix, model, sizes, count)
    found, truth = (judge_ads if kind == "ads" else judge_slates)(tables, methods, sizes, seed)
    return _rows(found, truth, tables, kind, seed)


def _rows(found: Found, truth: Truth, tables: Tables, kind: str, seed: int) -> pd.DataFrame:
    grades = [
        tidy(SUITE, method, seed, _under(reward, grade(estimates, truth[reward])), step=size)
        for (method, reward, size), estimates in found.items()
    ]
    values = [
        tidy(SUITE, f"truth_{kind}", seed, _under(f"{reward}/value", known))
        for reward, known in truth.items()
    ]
    return pd.concat([*grades, *values])


def _under(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in metrics.items()}


def _no_truth(world: str) -> str:
    return (
        f"suite {SUITE!r} compares estimates with a known truth, and world {world!r} has none: "
        f"choose one of {', '.join(SYNTHETIC)}, or a directory with a synthetic world"
    )


def _check_world(world: str) -> None:
    """Raise a user's error for a world that can't have a truth, before any work."""
    if world in world_names():
        has_truth = world in SYNTHETIC
    else:
        try:
            has_truth = bool(json.loads((Path(world) / "world.json").read_text())["has_truth"])
        except (OSError, ValueError, KeyError, TypeError):
            return  # reading the world says what is wrong with it
    if not has_truth:
        raise UserError(_no_truth(world))


def make_tasks(settings: Settings) -> list[Task]:
    """Return per seed the world with its target policy, then ads and slates on their own."""
    _check_world(settings.world)
    here = "benchmarks.off_policy.suite"
    shared: dict[str, Any] = {
        "out": settings.out,
        "world": settings.world,
        "sizes": settings.sizes,
    }
    plan = Plan(settings.out)
    for seed in settings.seeds:
        plan.add(
            f"world and policies, seed {seed}",
            f"{here}:prepare_seed",
            files=(_policy_file(settings.out, seed), _log_file(settings.out, seed)),
            **shared,
            seed=seed,
        )
    for seed in settings.seeds:
        for kind, known in KINDS.items():
            if methods := tuple(m for m in settings.methods if m in known):
                plan.add(
                    f"{kind}, seed {seed}",
                    f"{here}:judge",
                    needs=(f"world and policies, seed {seed}",),
                    **shared,
                    reward=settings.reward,
                    seed=seed,
                    kind=kind,
                    methods=methods,
                )
    return plan.tasks


def finish(settings: Settings, results: pd.DataFrame) -> SuiteReport:
    """Return the report of a finished run."""
    assert isinstance(settings.sizes, OffPolicyPreset)
    return make_report(
        results, methods=settings.methods, world=settings.world, sizes=settings.sizes
    )
