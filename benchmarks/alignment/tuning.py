"""Gives every method the same number of trials on worlds that no test uses (`--tune N`)."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from agents.methods import method_config, search_space
from agents.rollout import NonFiniteError
from agents.train_config import TrainConfig
from agents.trainer import train
from benchmarks.alignment.presets import AlignmentPreset
from benchmarks.alignment.setup import (
    Setup,
    checkpoint,
    rows_frame,
    train_warm_start,
    validation_metrics,
)
from benchmarks.evaluation import make_evaluation_set
from benchmarks.plugins import import_methods
from benchmarks.runs.files import write_json
from benchmarks.runs.results import read_results
from benchmarks.runs.tasks import log_progress
from benchmarks.runs.trials import draw_trials
from benchmarks.settings import Settings
from benchmarks.worlds import open_market
from gpr_rl.checkpoint import CheckpointError
from gpr_rl.policy import load_policy, save_policy
from simulators.rewards import RewardMix

SCORE = "proxy_share_expected"
"""What tuning maximises: the share of the gain under the rankers, on validation requests. The truth
is never looked at."""


def trial_settings(method: str, num_trials: int) -> list[dict[str, float]]:
    """Return what every trial of a method sets: its defaults first, then draws from its space."""
    return draw_trials(search_space(method), num_trials)


def prepare_tuning(
    *, out: Path, world: str, reward: tuple[str, ...], seed: int, sizes: AlignmentPreset
) -> None:
    """Train the warm start of a tuning seed, with its validation requests."""
    loaded = open_market(world, "base", seed)
    mix = RewardMix.from_specs(list(reward))
    saved_mtp = checkpoint(out, "mtp", seed)
    model, _, _ = train_warm_start(loaded, sizes, mix, seed, saved_mtp, world)
    save_policy(model, checkpoint(out, "vaft", seed), world=world, method="vaft", seed=seed)
    validation = make_evaluation_set(loaded, mix, sizes.num_validation_requests, "validation")
    empty = torch.zeros(0)
    setup = Setup(loaded, mix, validation, validation, empty, empty)
    setup.save(checkpoint(out, "evaluation", seed))


def run_trial(
    *,
    out: Path,
    world: str,
    reward: tuple[str, ...],
    seed: int,
    sizes: AlignmentPreset,
    method: str,
    trial: int,
    plugins: tuple[str, ...] = (),
) -> pd.DataFrame:
    """Train one trial on a tuning seed; a run that stops at a non-finite number has no score."""
    import_methods(plugins)
    loaded = open_market(world, "base", seed)
    mix = RewardMix.from_specs(list(reward))
    setup = Setup.load(checkpoint(out, "evaluation", seed), loaded, mix)
    settings = trial_settings(method, sizes.tuning.num_trials)[trial]
    training = method_config(method, sizes.training)
    config = _with_settings(training, settings, sizes.tuning.num_steps)
    model = load_policy(checkpoint(out, "vaft", seed))
    metrics: dict[str, float] = {}
    try:
        train(model, loaded, method, config, seed, reward=mix)
        metrics = validation_metrics(model.eval(), setup)
    except NonFiniteError as error:
        log_progress(0, config.num_steps, failed=str(error))
    named = {f"trial_{trial:02d}/{name}": value for name, value in metrics.items()}
    return rows_frame(method, seed, config.num_steps, "tuning", named)


def choose(
    *,
    method: str,
    parts: Sequence[Sequence[Path]],
    sizes: AlignmentPreset,
    output: Path,
    plugins: tuple[str, ...] = (),
) -> None:
    """Write the best trial's settings by its mean score over the tuning seeds, ties to the first.

    A trial without a score on one of the seeds can't be chosen.
    """
    import_methods(plugins)
    output.parent.mkdir(exist_ok=True)
    log: list[dict[str, Any]] = []
    for trial, (settings, paths) in enumerate(
        zip(trial_settings(method, sizes.tuning.num_trials), parts, strict=True)
    ):
        scores = []
        for path in paths:
            table = read_results(path)
            found = table[table["metric"] == f"trial_{trial:02d}/{SCORE}"]["value"]
            scores += found.tolist()
        mean = sum(scores) / len(scores) if len(scores) == len(paths) else None
        log.append({"trial": trial, "settings": settings, "scores": scores, "mean": mean})
    best = max(
        (entry for entry in log if entry["mean"] is not None),
        key=lambda entry: (entry["mean"], -entry["trial"]),
        default=log[0],
    )
    write_json(output, {"method": method, "chosen": best["settings"], "trials": log})


def read_choice(path: Path | None, training: TrainConfig) -> TrainConfig:
    """Return the training configuration with a method's chosen settings."""
    if path is None:
        return training
    try:
        chosen = json.loads(path.read_text())["chosen"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(path, str(error)) from error
    return _with_settings(training, chosen, training.num_steps)


def _with_settings(training: TrainConfig, settings: dict, num_steps: int) -> TrainConfig:
    return replace(training, **settings, num_steps=num_steps)


def tuned_file(settings: Settings, method: str) -> Path | None:
    """Return where a method's choice is kept; None where a run does not tune."""
    assert isinstance(settings.sizes, AlignmentPreset)
    if not settings.sizes.tuning.num_trials:
        return None
    return settings.out / "tuning" / f"{method}.json"
