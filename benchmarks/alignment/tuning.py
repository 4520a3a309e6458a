"""Gives every method the same number of trials on worlds that no test uses (`--tune N`)."""

from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from agents.methods import method_config, search_space
from agents.registry import SearchSpace
from agents.rollout import NonFiniteError
from agents.trainer import train
from agents.warm_start import train_exp_sft
from benchmarks.alignment.presets import SUPERVISED_SPACES, AlignmentPreset, AlignmentSettings
from benchmarks.alignment.setup import (
    Setup,
    checkpoint,
    rows_frame,
    saved_model,
    served_on_validation,
)
from benchmarks.alignment.start import train_warm_start
from benchmarks.evaluation import make_evaluation_set
from benchmarks.plugins import import_methods
from benchmarks.runs.tasks import log_progress
from benchmarks.runs.trials import draw_trials
from benchmarks.worlds import BASE, open_world
from simulators.rewards import RewardMix

SCORE = "proxy_share_served_5"
"""What tuning maximises: the share of the gain of the best of 5, by the rankers and as they value
it, on validation requests. The truth is never looked at."""
ERROR = f"{SCORE}_se"
"""The score's standard error over requests."""


def space_of(method: str) -> SearchSpace:
    """Return what tuning may change of a row."""
    return SUPERVISED_SPACES.get(method) or search_space(method)


def trial_settings(method: str, sizes: AlignmentPreset) -> list[dict[str, float]]:
    """Return what every trial of a method sets: its defaults first, then draws from its space.

    A trial with more candidates has fewer requests: all have the same ranker evaluations.
    """
    budget = sizes.training.num_requests * sizes.training.num_candidates
    trials = draw_trials(space_of(method), sizes.tuning.num_trials)
    return [
        {**trial, "num_requests": max(1, budget // int(trial["num_candidates"]))}
        if "num_candidates" in trial
        else trial
        for trial in trials
    ]


def prepare_tuning(*, settings: AlignmentSettings, seed: int) -> None:
    """Train the warm start of a tuning seed, with its validation requests."""
    loaded = open_world(settings.world, seed)
    mix = RewardMix.from_specs(list(settings.reward))
    train_warm_start(settings, loaded, mix, seed)
    num_requests = settings.sizes.num_validation_requests
    placed: Any = loaded.to(settings.device)
    validation = make_evaluation_set(placed, mix, num_requests, "validation")
    empty = torch.zeros(0)
    setup = Setup(loaded, mix, validation, validation, empty, empty)
    setup.save(checkpoint(settings.out, "evaluation", seed))


def run_trial(*, settings: AlignmentSettings, seed: int, method: str, trial: int) -> pd.DataFrame:
    """Train one trial on a tuning seed; a run that stops at a non-finite number has no score."""
    import_methods(settings.plugins)
    setup, sizes = Setup.load(settings, seed), settings.sizes
    dials = trial_settings(method, sizes)[trial]
    num_steps = sizes.tuning.num_steps
    metrics: dict[str, float] = {}
    try:
        if method in SUPERVISED_SPACES:
            model = saved_model(settings, "mtp", seed)
            stages = replace(sizes.warm_start, **dials)  # type: ignore[arg-type]
            num_steps = stages.vaft.num_steps
            train_exp_sft(model, setup.world, stages, seed)
        else:
            model = saved_model(settings, "vaft", seed)
            training = method_config(method, sizes.training)
            config = replace(training, **dials, num_steps=num_steps)  # type: ignore[arg-type]
            train(model, setup.world, method, config, seed, reward=setup.reward)
        metrics = served_on_validation(model.eval(), setup, sizes.list_size)
    except NonFiniteError as error:
        log_progress(0, num_steps, failed=str(error))
    return rows_frame(method, seed, num_steps, "tuning", metrics, market=BASE, trial=trial + 1)
