"""Prepares a seed: its warm start, held-out requests, and the rows that need no RL."""

import time
from collections.abc import Mapping
from typing import Any

import pandas as pd

from agents.warm_start import build_model, train_critic, train_mtp, train_vaft
from benchmarks.alignment.presets import AlignmentSettings
from benchmarks.alignment.references import reference_rows
from benchmarks.alignment.setup import Setup, checkpoint, rows_frame, saved_model
from benchmarks.evaluation import evaluate_model, make_evaluation_set, path_log_prob, policy_beam
from benchmarks.runs.tasks import log_progress
from benchmarks.worlds import BASE, open_world
from gpr_rl.models import HHD
from gpr_rl.policy import save_policy
from simulators.markets import log_view, train_view
from simulators.rankers.cards import OVERALL, ranker_card
from simulators.rewards import RewardMix
from simulators.world import World


def _card_rows(world: World, market: str, seed: int) -> list[pd.DataFrame]:
    """Return the grades of a market's rankers as rows of `rankers`: by group on the base market."""

    def graded(metrics: Mapping[str, float], **conditions: str) -> pd.DataFrame:
        return rows_frame("rankers", seed, 0, "test", metrics, market=market, **conditions)

    def numbers(part: str) -> dict[str, float]:
        card = world.ranker_card.get(part, {})
        return {key: value for key, value in card.items() if not isinstance(value, str)}

    rows = [graded({f"regime/{key}": value for key, value in numbers("regime").items()})]
    if market != BASE:
        return rows
    worth = world.ranker_card.get("worth", {})
    rows += [
        graded({f"gain/{name}/{served}": value for served, value in gains.items()})
        for name, gains in worth.get("gain", {}).items()
    ]
    rows.append(graded({k: worth[k] for k in ("best_ads", "personal_share") if k in worth}))
    for task, groups in ranker_card(world, with_oracle=False).items():
        for group, grades in {**groups, OVERALL: numbers(task)}.items():
            rows.append(graded(grades, task=task, group=group))
    return rows


def train_warm_start(
    settings: AlignmentSettings, world: World, reward: RewardMix, seed: int, market: str = BASE
) -> tuple[HHD, dict[tuple[str, int], dict[str, float]], dict[str, float]]:
    """Train MTP, VAFT and the critic, and save them as `mtp` and `vaft`.

    Returns:
        The model, what was logged by stage and step, and the seconds spent by row.
    """
    stages = settings.sizes.warm_start
    model = build_model(world, stages.model, seed).to(settings.device)
    logs: dict[tuple[str, int], dict[str, float]] = {}
    total = stages.mtp.num_steps + stages.vaft.num_steps + stages.critic.num_steps

    def on_stage(stage: str, step: int, logged: dict[str, float]) -> None:
        logs[stage, step] = logged
        if len(logs) % 20 == 0 or len(logs) == total:
            log_progress(len(logs), total, stage=stage, **logged)

    def save(row: str) -> None:
        about = {"world": settings.world, "method": row, "seed": seed}
        save_policy(model.eval(), checkpoint(settings.out, row, seed, market), **about)

    seconds = {}
    started = time.perf_counter()
    train_mtp(model, log_view(world), stages, seed, on_stage)
    seconds["mtp"] = time.perf_counter() - started
    save("mtp")
    started = time.perf_counter()
    train_vaft(model, log_view(world), stages, seed, on_stage)
    train_critic(model, train_view(world), stages, seed, reward, on_stage)
    seconds["vaft"] = seconds["mtp"] + time.perf_counter() - started
    save("vaft")
    return model, logs, seconds


def prepare_seed(*, settings: AlignmentSettings, market: str, seed: int) -> pd.DataFrame:
    """Train the warm start of one seed on a market; return reference and warm-start rows."""
    started = time.perf_counter()
    sizes = settings.sizes
    loaded = open_world(settings.world, seed, market)
    mix = RewardMix.from_specs(list(settings.reward))
    model, logs, seconds = train_warm_start(settings, loaded, mix, seed, market)
    scoring = time.perf_counter()
    placed: Any = loaded.to(settings.device)
    data = make_evaluation_set(placed, mix, sizes.num_test_requests)
    validation = make_evaluation_set(placed, mix, sizes.num_validation_requests, "validation")
    evaluating = time.perf_counter()
    beam = policy_beam(model, loaded, data.request_id, data.eligible, sizes.list_size)
    warm = path_log_prob(model, loaded, data.request_id, data.eligible)
    setup = Setup(loaded, mix, data, validation, beam.ad_id, warm)
    setup.save(checkpoint(settings.out, "evaluation", seed, market))

    rows = reference_rows(setup, market, seed, sizes.list_size)
    rows += _card_rows(loaded, market, seed)
    for name, policy in (("mtp", saved_model(settings, "mtp", seed, market)), ("vaft", model)):
        reference = warm if name == "mtp" else None
        metrics = evaluate_model(policy, loaded, data, setup.shared, reference, sizes.list_size)
        metrics["train_s"] = seconds[name]
        rows.append(rows_frame(name, seed, 0, "test", metrics, market=market))
    for (stage, step), logged in logs.items():
        on_stage = {"market": market, "part": stage}
        rows.append(rows_frame("warm_start", seed, step + 1, "train", logged, **on_stage))
    ended = time.perf_counter()
    spent = {
        "total_s": ended - started,
        "update_s": seconds["vaft"],
        "rankers_s": evaluating - scoring,
        "evaluation_s": ended - evaluating,
    }
    rows.append(rows_frame("vaft", seed, 0, "time", spent, market=market))
    return pd.concat(rows, ignore_index=True)
