"""Trains one size on one seed and keeps its loss curve.

The loss is -log p of the next ad's whole path among the legal ones, in nats: on the windows that
train the model, and on requests of days that it never sees.

Dims: B windows.
"""

import math
import time
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from benchmarks.measure.flops import training_flops
from benchmarks.measure.sizes import examples_per_step, non_embedding_parameters
from benchmarks.runs.results import tidy
from benchmarks.runs.tasks import log_progress
from benchmarks.runs.trials import tune_rate, with_choice
from benchmarks.scaling.presets import SIZES, SUITE, ScalingPreset
from benchmarks.worlds import open_world
from gpr_rl.models import HHD
from gpr_rl.pretraining.mtp import mtp_loss, path_log_prob
from gpr_rl.pretraining.trainer import StageConfig, train_stage
from gpr_rl.schema import Targets, Tokens
from simulators.world import World
from simulators.world.history import DAY_S
from simulators.world.supervision import WindowBatches

WORLD_SEED = 0
"""Of the one world of all seeds."""
_BATCH = 64
_HELDOUT_SEED = 2_000


def heldout_batches(world: World, split: str, count: int) -> list[tuple[Tokens, Targets]]:
    """Return about `count` draws of requests of `validation` or `test` days, with what was shown.

    Every one is the last of a window and the only one supervised; the same for all sizes and seeds.
    """
    info = world.info
    begin = info.num_log_days + (0 if split == "validation" else info.num_validation_days)
    end = info.num_log_days + info.num_validation_days if split == "validation" else info.num_days
    batches = WindowBatches(
        world,
        _HELDOUT_SEED,
        num_windows=min(_BATCH, count),
        num_positions=1,
        num_heads=1,
        first_time=begin * DAY_S,
        last_time=end * DAY_S,
    )
    return [batches(step) for step in range(math.ceil(count / _BATCH))]


@torch.no_grad()
def heldout_losses(model: HHD, batches: list[tuple[Tokens, Targets]]) -> Tensor:
    """Return the loss of every target of the batches, nats per path, float32 [E]."""
    losses = []
    for tokens, targets in batches:
        score = path_log_prob(model.mtp_logits(tokens, targets), targets)
        losses.append(-score[targets.valid])
    return torch.cat(losses)


def train_size(
    world: World, size: str, seed: int, config: StageConfig, sizes: ScalingPreset, split: str
) -> tuple[dict[int, dict[str, float]], dict[str, float]]:
    """Train one size and return its curve by step, and where it ended and what it took."""
    shown = heldout_batches(world, split, sizes.num_curve)
    batches = WindowBatches(world, seed, sizes.num_windows, sizes.num_positions, num_heads=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = HHD(SIZES[size], world.spec)

    def loss_of(step: int) -> Tensor:
        tokens, targets = batches(step)
        return mtp_loss(model.mtp_logits(tokens, targets), targets, model.head_logits, 0.0)

    every = max(1, config.num_steps // sizes.num_points)
    curve: dict[int, dict[str, float]] = {}
    since: list[float] = []
    judging = 0.0

    def on_step(step: int, logged: dict[str, float]) -> None:
        nonlocal judging
        since.append(logged["loss"])
        if (step + 1) % every and step + 1 != config.num_steps:
            return
        began = time.perf_counter()
        held_out = float(heldout_losses(model, shown).mean())
        judging += time.perf_counter() - began
        curve[step + 1] = {"train_loss": sum(since) / len(since), "heldout_loss": held_out}
        since.clear()
        log_progress(step + 1, config.num_steps, **curve[step + 1])

    flops = training_flops(lambda: loss_of(0))
    started = time.perf_counter()
    train_stage(
        [model.policy_parameters()],
        lambda step: (loss_of(step), {}),
        config,
        on_step,
        size,
        requests_of_step=batches.request_ids,
    )
    seconds = time.perf_counter() - started - judging
    final = heldout_losses(model, heldout_batches(world, split, sizes.num_final))
    critic = sum(p.numel() for p in model.hte_parameters())
    examples = examples_per_step(batches)
    facts = {
        "final_loss": float(final.mean()),
        "final_loss_error": float(final.std()) / math.sqrt(len(final)),
        "num_parameters": float(sum(p.numel() for p in model.parameters()) - critic),
        "num_inner_parameters": float(non_embedding_parameters(model)),
        "step_gflop": flops / 1e9,
        "examples_per_step": examples,
        "learning_rate": config.learning_rate,
        "train_s": seconds,
        "examples_per_s": config.num_steps * examples / seconds,
    }
    return curve, facts


def run_trial(*, world: str, size: str, sizes: ScalingPreset, output: Path) -> None:
    """Try every learning rate on the tuning seed and write the one with the lowest loss."""
    loaded = open_world(world, WORLD_SEED)

    def final_loss(config: StageConfig) -> float:
        trained = train_size(loaded, size, sizes.tuning_seed, config, sizes, "validation")
        return trained[1]["final_loss"]

    tune_rate(sizes.learning_rates, sizes.training, final_loss, output)


def run_size(
    *, world: str, size: str, seed: int, tuned: Path | None, sizes: ScalingPreset
) -> pd.DataFrame:
    """Train one size on one seed; facts stand at the last step."""
    config = with_choice(sizes.training, tuned)
    loaded = open_world(world, WORLD_SEED)
    curve, facts = train_size(loaded, size, seed, config, sizes, "test")
    curve[max(curve)] |= facts
    test = {name for name in curve[max(curve)] if "loss" in name} - {"train_loss"}
    return pd.concat(
        tidy(SUITE, size, seed, {name: x}, step=step, split="test" if name in test else "train")
        for step, metrics in curve.items()
        for name, x in metrics.items()
    )
