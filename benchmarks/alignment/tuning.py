"""Gives every method the same number of trials on worlds that no test uses (`--tune N`)."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from agents.methods import method_config, search_space
from agents.registry import SearchSpace
from agents.rollout import NonFiniteError
from agents.trainer import train
from agents.warm_start import train_exp_sft
from benchmarks.alignment.presets import AlignmentPreset
from benchmarks.alignment.setup import Setup, checkpoint, rows_frame, served_on_validation
from benchmarks.alignment.start import train_warm_start
from benchmarks.evaluation import make_evaluation_set
from benchmarks.plugins import import_methods
from benchmarks.runs.tasks import log_progress
from benchmarks.runs.trials import draw_trials
from benchmarks.worlds import BASE, open_world
from gpr_rl.policy import load_policy, save_policy
from simulators.rewards import RewardMix

SCORE = "proxy_share_served_5"
"""What tuning maximises: the share of the gain of the best of 5, by the rankers and as they value
it, on validation requests. The truth is never looked at."""
ERROR = f"{SCORE}_se"
"""The score's standard error over requests."""


SUPERVISED_SPACES: dict[str, SearchSpace] = {"exp_sft": {"exp_temperature": (0.1, 0.3, 1, 3, 10)}}
"""What tuning may change of rows without RL: fields of `WarmStartConfig`."""


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


def prepare_tuning(
    *, out: Path, world: str, reward: tuple[str, ...], seed: int, sizes: AlignmentPreset
) -> None:
    """Train the warm start of a tuning seed, with its validation requests."""
    loaded = open_world(world, seed)
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
    setup = Setup.load(out, world, reward, seed)
    settings = trial_settings(method, sizes)[trial]
    num_steps = sizes.tuning.num_steps
    metrics: dict[str, float] = {}
    try:
        if method in SUPERVISED_SPACES:
            model = load_policy(checkpoint(out, "mtp", seed))
            stages = replace(sizes.warm_start, **settings)  # type: ignore[arg-type]
            num_steps = stages.vaft.num_steps
            train_exp_sft(model, setup.world, stages, seed)
        else:
            model = load_policy(checkpoint(out, "vaft", seed))
            training = method_config(method, sizes.training)
            config = replace(training, **settings, num_steps=num_steps)  # type: ignore[arg-type]
            train(model, setup.world, method, config, seed, reward=setup.reward)
        metrics = served_on_validation(model.eval(), setup, sizes.list_size)
    except NonFiniteError as error:
        log_progress(0, num_steps, failed=str(error))
    return rows_frame(method, seed, num_steps, "tuning", metrics, market=BASE, trial=trial + 1)
