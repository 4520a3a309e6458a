"""Off-policy evaluation against the known truth: which estimator can be trusted, and how far.

Per seed a synthetic world is logged by its production system, whose propensities are known. Every
estimator judges the same target policies from the same logs; what each policy is really worth is
an exact expectation under the hidden truth.
"""

import json
from functools import partial
from pathlib import Path

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
    TRUTH,
    OffPolicyPreset,
)
from benchmarks.off_policy.report import make_report
from benchmarks.off_policy.tables import make_tables
from benchmarks.reports.blocks import SuiteReport
from benchmarks.runs.results import tidy
from benchmarks.runs.tasks import Task
from benchmarks.settings import Settings
from benchmarks.worlds import open_world
from gpr_rl.policy import load_policy, save_policy
from simulators.make import world_names
from simulators.rewards import RewardMix
from simulators.synthetic.config import PRESETS as SYNTHETIC
from simulators.synthetic.evaluator import TruthEvaluator

KINDS = {"ads": AD_METHODS, "slates": SLATE_METHODS}


def _policy_file(out: Path, seed: int) -> Path:
    return out / "checkpoints" / f"hhd-seed{seed}.safetensors"


def _log_file(out: Path, seed: int) -> Path:
    return out / "logs" / f"behavior-seed{seed}.parquet"


def prepare_seed(*, out: Path, world: str, seed: int, sizes: OffPolicyPreset) -> None:
    """Make the world if need be, train the HHD that is one of the target policies, export a log."""
    loaded = open_world(world, seed)
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
    loaded = open_world(world, seed)
    model = load_policy(_policy_file(out, seed))
    mix = RewardMix.from_specs(list(reward))
    count = sizes.num_requests if kind == "ads" else sizes.num_slate_requests
    tables = make_tables(loaded, mix, model, sizes, count)
    found, truth = (judge_ads if kind == "ads" else judge_slates)(tables, methods, sizes, seed)
    return _rows(found, truth, kind, seed)


def _rows(found: Found, truth: Truth, kind: str, seed: int) -> pd.DataFrame:
    graded = [
        (method, reward, size, grade(estimates, truth[reward]))
        for (method, reward, size), estimates in found.items()
    ]
    graded += [
        (TRUTH, reward, 0, {policy: {"value": value} for policy, value in known.items()})
        for reward, known in truth.items()
    ]
    return pd.concat(
        tidy(SUITE, method, seed, grades, step=size, kind=kind, reward=reward, policy=policy)
        for method, reward, size, by_policy in graded
        for policy, grades in by_policy.items()
    )


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


def make_tasks(settings: Settings[OffPolicyPreset]) -> list[Task]:
    """Return per seed the world with its target policy, then ads and slates on their own."""
    _check_world(settings.world)
    out = settings.out
    task = partial(settings.task, out=out, world=settings.world, sizes=settings.sizes)
    tasks = [
        task(
            f"world and policies, seed {seed}",
            "off_policy.suite:prepare_seed",
            files=(_policy_file(out, seed), _log_file(out, seed)),
            seed=seed,
        )
        for seed in settings.seeds
    ]
    for seed in settings.seeds:
        for kind, known in KINDS.items():
            methods = tuple(m for m in settings.methods if m in known)
            if methods:
                judged = task(
                    f"{kind}, seed {seed}",
                    "off_policy.suite:judge",
                    needs=(f"world and policies, seed {seed}",),
                    reward=settings.reward,
                    seed=seed,
                    kind=kind,
                    methods=methods,
                )
                tasks.append(judged)
    return tasks


def finish(settings: Settings[OffPolicyPreset], results: pd.DataFrame) -> SuiteReport:
    """Return the report of a finished run."""
    return make_report(
        results, methods=settings.methods, world=settings.world, sizes=settings.sizes
    )
