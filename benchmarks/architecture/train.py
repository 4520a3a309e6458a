"""Trains one row of the architecture study on one seed and ranks the whole catalogue with it.

Dims: E requests, K list entries.
"""

import time
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from benchmarks.architecture.models import Rank, Studied, build
from benchmarks.architecture.presets import NO_TRAINING, SUITE, ArchitecturePreset
from benchmarks.architecture.protocol import Protocol, make_protocol
from benchmarks.measure.flops import training_flops
from benchmarks.measure.sizes import examples_per_step
from benchmarks.runs.results import tidy
from benchmarks.runs.tasks import log_progress
from benchmarks.runs.trials import tune_rate, with_choice
from benchmarks.worlds import open_world
from gpr_rl.decoding import CodeTrie
from gpr_rl.metrics import hit_rate, recall_ndcg
from gpr_rl.pretraining.trainer import Keep, StageConfig, train_stage
from simulators.world import World

CUTOFF = 10
_BATCH = 32


def evaluate(rank: Rank, world: World, request_id: Tensor, list_size: int) -> dict[str, float]:
    """Return HitR at the list's length, Recall@10 and NDCG@10 over the whole catalogue."""
    with torch.no_grad():
        ranked = torch.cat([rank(part) for part in request_id.split(_BATCH)])
    target = world.request_ad[request_id]
    recall, ndcg = recall_ndcg(ranked, target, CUTOFF)
    return {
        f"hitr_{list_size}": float(hit_rate(ranked, target).mean()),
        f"recall_{CUTOFF}": float(recall.mean()),
        f"ndcg_{CUTOFF}": float(ndcg.mean()),
    }


def unreachable(trie: CodeTrie | None, target: Tensor) -> float:
    """Return the share of targets, ads int64 [E], that no search over these paths can give.

    Another ad wins the path that they share. 0 without a trie: every ad is scored.
    """
    if trie is None:
        return 0.0
    found = trie.restrict().resolve(trie.codes[target])
    return float((found != target).float().mean())


def train(
    studied: Studied, protocol: Protocol, config: StageConfig, sizes: ArchitecturePreset, name: str
) -> dict[str, float]:
    """Train in place, keep the weights of the best validation, and return what it took."""
    validation = protocol.held_out("validation", sizes.num_validation_requests)
    module = studied.module
    losses: list[float] = []
    validating = 0.0

    def validate() -> float:
        nonlocal validating
        began = time.perf_counter()
        module.eval()
        try:
            score = evaluate(studied.rank, protocol.world, validation, sizes.list_size)
        except ValueError as error:  # a search refuses what a diverged model says
            if torch.isfinite(studied.loss(0)):
                raise
            raise FloatingPointError(f"{name}: validation met a diverged model: {error}") from error
        module.train()
        validating += time.perf_counter() - began
        return score[f"hitr_{sizes.list_size}"]

    def on_step(step: int, logged: dict[str, float]) -> None:
        losses.append(logged["loss"])
        if (step + 1) % 20 == 0:
            log_progress(step + 1, config.num_steps, **logged)

    module.train()
    started = time.perf_counter()
    result = train_stage(
        studied.groups,
        lambda step: (studied.loss(step), {}),
        config,
        on_step,
        name,
        keep=Keep(module, validate),
        requests_of_step=studied.batches.request_ids,
    )
    seconds = time.perf_counter() - started - validating
    module.eval()
    return {
        "validation": result.best_score,
        "num_steps": float(result.num_steps),
        "best_step": float(result.best_step),
        "first_loss": losses[0],
        "last_loss": sum(losses[-10:]) / len(losses[-10:]),
        "train_s": seconds,
        "examples_per_s": result.num_steps * examples_per_step(studied.batches) / seconds,
    }


def run_trial(
    *, world: str, protocol: str, row: str, sizes: ArchitecturePreset, output: Path
) -> None:
    """Try every learning rate on the tuning seed and write the best one's."""
    shown = make_protocol(protocol, open_world(world, sizes.tuning_seed))

    def lost(config: StageConfig) -> float:
        studied = build(row, shown, sizes, sizes.tuning_seed)
        return -train(studied, shown, config, sizes, row)["validation"]

    tune_rate(sizes.learning_rates, sizes.training, lost, output, sign=-1.0)


def run_row(
    *,
    world: str,
    protocol: str,
    row: str,
    seed: int,
    tuned: Path | None,
    sizes: ArchitecturePreset,
) -> pd.DataFrame:
    """Train and grade one row on one seed."""
    shown = make_protocol(protocol, open_world(world, seed))
    studied = build(row, shown, sizes, seed)
    metrics = {
        "num_parameters": float(studied.num_parameters),
        "num_inner_parameters": float(studied.num_inner_parameters),
    }
    if row not in NO_TRAINING:
        config = with_choice(sizes.training, tuned)
        flops = training_flops(lambda: studied.loss(0))
        metrics |= train(studied, shown, config, sizes, row)
        metrics["training_gflop"] = flops * metrics["num_steps"] / 1e9
        metrics["learning_rate"] = config.learning_rate
    test = shown.held_out("test", sizes.num_test_requests)
    started = time.perf_counter()
    metrics |= evaluate(studied.rank, shown.world, test, sizes.list_size)
    metrics["ranked_per_s"] = len(test) / (time.perf_counter() - started)
    metrics["unreachable"] = unreachable(studied.trie, shown.world.request_ad[test])
    metrics |= {"num_requests": float(len(test)), "num_ads": float(shown.world.num_ads)}
    collapse = tidy(SUITE, row, seed, studied.statistics(), part="collapse")
    return pd.concat([tidy(SUITE, row, seed, metrics), collapse])
