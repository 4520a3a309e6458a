"""Tab. 3: does value alignment work? Warm start against DPO, PPO, GRPO and HEPO.

Every seed draws a world, its rankers and a warm start of its own; all methods of a seed start from
the same weights and meet the same requests, random streams and number of ranker evaluations, so
methods are compared inside a seed.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from agents.methods import TrainConfig
from agents.trainer import train
from agents.warm_start import (
    WarmStartConfig,
    build_model,
    train_critic,
    train_mtp,
    train_vaft,
)
from benchmarks.evaluation import (
    EvaluationSet,
    evaluate_model,
    list_metrics,
    make_evaluation_set,
    path_log_prob,
    policy_beam,
    popularity_distribution,
    value_metrics,
)
from gpr_rl.models import HHD, HHDConfig
from gpr_rl.policy import load_policy, save_policy
from gpr_rl.pretraining.trainer import StageConfig
from simulators.make import load_world
from simulators.rewards import RewardMix
from simulators.world import World

SUITE = "alignment"
WARM_ROWS = ("mtp", "vaft")
REFERENCE_ROWS = ("logging", "popularity", "proxy_argmax", "best")


@dataclass(frozen=True, kw_only=True)
class AlignmentPreset:
    """Sizes of one preset."""

    world: str = "small"
    """Default world."""
    num_seeds: int = 3
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    training: TrainConfig = field(default_factory=TrainConfig)
    num_test_requests: int = 400
    """Held-out requests that every row is measured on."""
    num_validation_requests: int = 64
    """Requests of the first held-out day for the curves during training."""
    validate_every: int = 20
    """Training steps between points of the curves."""
    list_size: int = 40
    """K of beams and shared lists (GPR 3.3)."""


def _small_stages(mtp: int, vaft: int, critic: int) -> dict[str, StageConfig]:
    return {
        "mtp": StageConfig(num_steps=mtp),
        "vaft": StageConfig(num_steps=vaft, learning_rate=1e-3),
        "critic": StageConfig(num_steps=critic),
    }


PRESETS = {
    "smoke": AlignmentPreset(
        world="tiny",
        num_seeds=2,
        warm_start=WarmStartConfig(
            model=HHDConfig(dim=32, num_hsd_layers=1),
            **_small_stages(30, 15, 10),
            num_windows=32,
        ),
        training=TrainConfig(
            num_steps=10, num_requests=32, num_candidates=8, critic_warmup_steps=2
        ),
        num_test_requests=60,
        num_validation_requests=24,
        validate_every=5,
    ),
    "quick": AlignmentPreset(),
    "paper": AlignmentPreset(
        num_seeds=10, training=TrainConfig(num_steps=300), num_test_requests=1_000
    ),
}


def _rows(method: str, seed: int, step: int, split: str, metrics: dict[str, float]) -> pd.DataFrame:
    """Return tidy rows; what is not finite does not apply and has none."""
    table = pd.DataFrame(
        {
            "suite": SUITE,
            "method": method,
            "seed": seed,
            "step": step,
            "split": split,
            "metric": list(metrics),
            "value": [float(v) for v in metrics.values()],
        }
    )
    return table[table["value"].abs() < float("inf")].reset_index(drop=True)


@dataclass(frozen=True)
class Setup:
    """What the tasks of one seed share."""

    world: World
    reward: RewardMix
    data: EvaluationSet
    validation: EvaluationSet


def _setup(world: str, reward: tuple[str, ...], seed: int, preset: AlignmentPreset) -> Setup:
    loaded = load_world(world, seed=seed)
    mix = RewardMix.from_specs(list(reward))
    return Setup(
        loaded,
        mix,
        make_evaluation_set(loaded, mix, preset.num_test_requests),
        make_evaluation_set(loaded, mix, preset.num_validation_requests, "validation"),
    )


def _policy_path(out: Path, method: str, seed: int) -> Path:
    return out / "checkpoints" / f"{method}-seed{seed}.safetensors"


def prepare_seed(
    *, out: str, world: str, reward: tuple[str, ...], seed: int, preset: str
) -> pd.DataFrame:
    """Make the world and the warm start of one seed; return reference and warm-start rows."""
    sizes = PRESETS[preset]
    setup = _setup(world, reward, seed, sizes)
    rows = [_reference_rows(setup, seed)]
    card = setup.world.ranker_card
    for task in ("pctr", "pcvr"):
        if task in card:
            named = {f"{task}/{key}": value for key, value in card[task].items()}
            rows.append(_rows("rankers", seed, 0, "test", named))
    if "regime" in card:
        numbers = {f"regime/{k}": v for k, v in card["regime"].items() if not isinstance(v, str)}
        rows.append(_rows("rankers", seed, 0, "test", numbers))
    model = build_model(setup.world, sizes.warm_start.model, seed)
    logs: dict[tuple[str, int], dict[str, float]] = {}

    def on_stage(stage: str, step: int, logged: dict[str, float]) -> None:
        logs[stage, step] = logged

    started = time.perf_counter()
    train_mtp(model, setup.world, sizes.warm_start, seed, on_stage)
    mtp_s = time.perf_counter() - started
    model.eval()
    save_policy(model, _policy_path(Path(out), "mtp", seed), world=world, method="mtp", seed=seed)
    mtp = load_policy(_policy_path(Path(out), "mtp", seed))
    started = time.perf_counter()
    train_vaft(model, setup.world, sizes.warm_start, seed, on_stage)
    train_critic(model, setup.world, sizes.warm_start, seed, setup.reward, on_stage)
    vaft_s = time.perf_counter() - started
    model.eval()
    save_policy(model, _policy_path(Path(out), "vaft", seed), world=world, method="vaft", seed=seed)
    shared, warm = warm_lists(model, setup, sizes.list_size)
    for name, policy, seconds in (("mtp", mtp, mtp_s), ("vaft", model, mtp_s + vaft_s)):
        metrics = evaluate_model(
            policy, setup.world, setup.data, shared, warm, sizes.list_size
        )
        rows.append(_rows(name, seed, 0, "test", {**metrics, "train_s": seconds}))
    for (stage, step), logged in logs.items():
        rows.append(_rows(f"warm_{stage}", seed, step + 1, "train", logged))
    return pd.concat(rows, ignore_index=True)


def warm_lists(model: HHD, setup: Setup, size: int) -> tuple[Tensor, Tensor]:
    """Return the warm start's beam, which all methods rank, and its path log-probabilities."""
    data = setup.data
    beam = policy_beam(model, setup.world, data.request_id, data.eligible, size)
    return beam.ad_id, path_log_prob(model, setup.world, data.request_id, data.eligible)


def _reference_rows(setup: Setup, seed: int) -> pd.DataFrame:
    """Return the rows that need no model (what RL must be compared with)."""
    data = setup.data
    rows = [_rows("logging", seed, 0, "test",
                  value_metrics(data, "expected", distribution=data.logging))]
    popularity = popularity_distribution(setup.world, data)
    ranked = popularity.argsort(dim=-1, descending=True, stable=True)
    top = ranked[:, :40]
    top = top.where(data.eligible.gather(1, top), -1)
    value = data.value.gather(1, top.clamp_min(0)).masked_fill(top < 0, -torch.inf)
    served = top.gather(1, value.argmax(-1, keepdim=True))[:, 0]
    rows.append(
        _rows(
            "popularity",
            seed,
            0,
            "test",
            {
                **value_metrics(data, "expected", distribution=popularity),
                **value_metrics(data, "greedy", ad_id=ranked[:, 0]),
                **value_metrics(data, "served", ad_id=served),
                **list_metrics(data, top, popularity.gather(1, top.clamp_min(0)), "_own"),
                "avg_final_value": float(value.where(top >= 0, torch.nan).nanmean(-1).mean()),
                "max_final_value": float(value.amax(-1).mean()),
            },
        )
    )
    rows.append(
        _rows("proxy_argmax", seed, 0, "test",
              value_metrics(data, "greedy", ad_id=data.proxy_best()))
    )
    best = value_metrics(data, "greedy", ad_id=data.proxy_best())
    if data.truth is not None:
        true_best = data.truth.masked_fill(~data.eligible, -torch.inf).argmax(-1)
        by_truth = value_metrics(data, "greedy", ad_id=true_best)
        best.update({k: v for k, v in by_truth.items() if k.startswith("truth")})
    rows.append(_rows("best", seed, 0, "test", best))
    return pd.concat(rows, ignore_index=True)


def run_method(
    *,
    out: str,
    world: str,
    reward: tuple[str, ...],
    seed: int,
    preset: str,
    method: str,
    resume: bool = False,
) -> pd.DataFrame:
    """Train one method from the seed's warm start and return its rows."""
    sizes = PRESETS[preset]
    setup = _setup(world, reward, seed, sizes)
    folder = Path(out)
    warm_model = load_policy(_policy_path(folder, "vaft", seed))
    shared, warm = warm_lists(warm_model, setup, sizes.list_size)
    model = load_policy(_policy_path(folder, "vaft", seed))
    rows: list[pd.DataFrame] = []
    curve: dict[int, dict[str, float]] = {0: _validation(model, setup)}
    spent_on_curve = 0.0

    def on_step(step: int, measures: dict[str, float]) -> None:
        nonlocal spent_on_curve
        done = step + 1
        if done % sizes.validate_every == 0 or done == sizes.training.num_steps:
            started = time.perf_counter()
            curve[done] = _validation(model, setup)
            spent_on_curve += time.perf_counter() - started

    started = time.perf_counter()
    history = train(
        model,
        setup.world,
        method,
        sizes.training,
        seed,
        reward=setup.reward,
        on_step=on_step,
        checkpoint_path=folder / "checkpoints" / f"{method}-seed{seed}.train.safetensors",
        resume=resume,
    )
    train_s = time.perf_counter() - started - spent_on_curve
    for step, measures in enumerate(history, start=1):
        rows.append(_rows(method, seed, step, "train", measures))
    for step, measures in curve.items():
        rows.append(_rows(method, seed, step, "validation", measures))
    model.eval()
    save_policy(model, _policy_path(folder, method, seed), world=world, method=method, seed=seed)
    metrics = evaluate_model(model, setup.world, setup.data, shared, warm, sizes.list_size)
    rows.append(_rows(method, seed, sizes.training.num_steps, "test",
                      {**metrics, "train_s": train_s}))
    return pd.concat(rows, ignore_index=True)


def _validation(model: HHD, setup: Setup) -> dict[str, float]:
    """Return the expected value on validation requests, for the learning curves."""
    data = setup.validation
    log_prob = path_log_prob(model, setup.world, data.request_id, data.eligible)
    by_ad = torch.zeros_like(data.value)
    by_ad.scatter_add_(1, data.path_ad.clamp_min(0), log_prob.exp().where(data.path_ad >= 0, 0.0))
    return value_metrics(data, "expected", distribution=by_ad)


def describe(preset: str) -> dict[str, object]:
    """Return the preset's settings as JSON types, for `config.json` and the report."""
    return json.loads(json.dumps(asdict(PRESETS[preset])))
