"""What all methods of a seed share: the market, the held-out requests and the warm start."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from agents.warm_start import build_model, train_critic, train_mtp, train_vaft
from benchmarks.alignment.presets import SUITE, AlignmentPreset
from benchmarks.evaluation import (
    EvaluationSet,
    ad_distribution,
    concentration_metrics,
    evaluate_model,
    list_metrics,
    make_evaluation_set,
    path_log_prob,
    policy_beam,
    pool_metrics,
    popularity_distribution,
    value_metrics,
)
from benchmarks.runs.results import applicable, tidy
from benchmarks.runs.tasks import log_progress
from benchmarks.worlds import BASE, on_market, open_world
from gpr_rl.checkpoint import below, load_checkpoint, save_checkpoint
from gpr_rl.models import HHD
from gpr_rl.policy import load_policy, save_policy
from simulators.markets import log_view, train_view
from simulators.rankers.cards import OVERALL, ranker_card
from simulators.rewards import RewardMix
from simulators.world import World


def rows_frame(
    method: str,
    seed: int,
    step: int,
    split: str,
    metrics: Mapping[str, float],
    **conditions: str | int,
) -> pd.DataFrame:
    """Return tidy rows; what is not finite does not apply and has none.

    The trainer's `NAME/LEVEL` becomes NAME of a level.
    """
    by_level: dict[int, dict[str, float]] = {0: {}}
    for name, value in applicable(metrics).items():
        front, _, end = name.rpartition("/")
        level = int(end) if end.isdigit() else 0
        by_level.setdefault(level, {})[front if level else name] = value
    frames = [
        tidy(SUITE, method, seed, own, step=step, split=split, level=level, **conditions)
        for level, own in by_level.items()
    ]
    return pd.concat(frames, ignore_index=True)


@dataclass(frozen=True)
class Setup:
    """What the tasks of one seed share."""

    world: World
    reward: RewardMix
    data: EvaluationSet
    validation: EvaluationSet
    shared: Tensor
    """int64 [E, K], the list of ads that all methods rank: the warm start's beam."""
    warm: Tensor
    """float32 [E, P], the warm start's path log-probabilities, for the KL."""

    def save(self, path: Path) -> None:
        """Write everything but the world, so that methods need not score all ads again."""
        tensors = {"shared": self.shared, "warm": self.warm}
        for name in ("data", "validation"):
            parts = getattr(self, name).tensors()
            tensors.update({f"{name}.{key}": value for key, value in parts.items()})
        save_checkpoint(path, tensors, {})

    @classmethod
    def load(
        cls, out: Path, world: str, reward: tuple[str, ...], seed: int, market: str = BASE
    ) -> "Setup":
        """Read what `prepare_seed` saved of a run's seed, and open its world."""
        loaded, mix = open_world(world, seed, market), RewardMix.from_specs(list(reward))
        tensors, _ = load_checkpoint(checkpoint(out, "evaluation", seed, market))
        data, validation = (
            EvaluationSet.from_tensors(below(start, tensors)) for start in ("data.", "validation.")
        )
        return cls(loaded, mix, data, validation, tensors["shared"], tensors["warm"])


def checkpoint(out: Path, row: str, seed: int, market: str = BASE) -> Path:
    """Return where a row's weights are kept."""
    return out / "checkpoints" / f"{on_market(row, market)}-seed{seed}.safetensors"


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
    for task, groups in ranker_card(world, with_oracle=False).items():
        for group, grades in {**groups, OVERALL: numbers(task)}.items():
            rows.append(graded(grades, task=task, group=group))
    return rows


def train_warm_start(
    world: World, sizes: AlignmentPreset, reward: RewardMix, seed: int, save_mtp: Path, tag: str
) -> tuple[HHD, dict[tuple[str, int], dict[str, float]], dict[str, float]]:
    """Train MTP, VAFT and the critic; return the model, what was logged and the seconds spent."""
    model = build_model(world, sizes.warm_start.model, seed)
    logs: dict[tuple[str, int], dict[str, float]] = {}
    stages = sizes.warm_start
    total = stages.mtp.num_steps + stages.vaft.num_steps + stages.critic.num_steps

    def on_stage(stage: str, step: int, logged: dict[str, float]) -> None:
        logs[stage, step] = logged
        if len(logs) % 20 == 0 or len(logs) == total:
            log_progress(len(logs), total, stage=stage, **logged)

    seconds = {}
    started = time.perf_counter()
    train_mtp(model, log_view(world), stages, seed, on_stage)
    seconds["mtp"] = time.perf_counter() - started
    model.eval()
    save_policy(model, save_mtp, world=tag, method="mtp", seed=seed)
    started = time.perf_counter()
    train_vaft(model, log_view(world), stages, seed, on_stage)
    train_critic(model, train_view(world), stages, seed, reward, on_stage)
    seconds["vaft"] = seconds["mtp"] + time.perf_counter() - started
    return model.eval(), logs, seconds


def prepare_seed(
    *,
    out: Path,
    world: str,
    market: str,
    reward: tuple[str, ...],
    seed: int,
    sizes: AlignmentPreset,
) -> pd.DataFrame:
    """Train the warm start of one seed on a market; return reference and warm-start rows."""
    started = time.perf_counter()
    loaded = open_world(world, seed, market)
    mix = RewardMix.from_specs(list(reward))
    saved_mtp = checkpoint(out, "mtp", seed, market)
    model, logs, seconds = train_warm_start(loaded, sizes, mix, seed, saved_mtp, world)
    save_policy(model, checkpoint(out, "vaft", seed, market), world=world, method="vaft", seed=seed)
    scoring = time.perf_counter()
    data = make_evaluation_set(loaded, mix, sizes.num_test_requests)
    validation = make_evaluation_set(loaded, mix, sizes.num_validation_requests, "validation")
    evaluating = time.perf_counter()
    beam = policy_beam(model, loaded, data.request_id, data.eligible, sizes.list_size)
    warm = path_log_prob(model, loaded, data.request_id, data.eligible)
    setup = Setup(loaded, mix, data, validation, beam.ad_id, warm)
    setup.save(checkpoint(out, "evaluation", seed, market))

    rows = _reference_rows(setup, market, seed, sizes.list_size)
    rows += _card_rows(loaded, market, seed)
    for name, policy in (("mtp", load_policy(saved_mtp)), ("vaft", model)):
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


def _reference_rows(setup: Setup, market: str, seed: int, list_size: int) -> list[pd.DataFrame]:
    """Return the rows that need no model (what RL must be compared with)."""
    data = setup.data
    best = value_metrics(data, "greedy", ad_id=data.proxy_best())
    if data.truth is not None:
        true_best = data.truth.masked_fill(~data.eligible, -torch.inf).argmax(-1)
        by_truth = value_metrics(data, "greedy", ad_id=true_best)
        best.update({k: v for k, v in by_truth.items() if k.startswith("truth")})
    found = {
        "logging": value_metrics(data, "expected", distribution=data.logging),
        "popularity": _popularity_metrics(setup, list_size),
        "proxy_argmax": value_metrics(data, "greedy", ad_id=data.proxy_best()),
        "best": best,
    }
    return [
        rows_frame(name, seed, 0, "test", metrics, market=market) for name, metrics in found.items()
    ]


def _popularity_metrics(setup: Setup, list_size: int) -> dict[str, float]:
    """Return the metrics of showing what most users clicked."""
    data = setup.data
    popularity = popularity_distribution(setup.world, data)
    ranked = popularity.argsort(dim=-1, descending=True, stable=True)
    top = ranked[:, :list_size]
    top = top.where(data.eligible.gather(1, top), -1)
    value = data.value.gather(1, top.clamp_min(0)).masked_fill(top < 0, -torch.inf)
    served = top.gather(1, value.argmax(-1, keepdim=True))[:, 0]
    return {
        **value_metrics(data, "expected", distribution=popularity),
        **value_metrics(data, "greedy", ad_id=ranked[:, 0]),
        **value_metrics(data, "served", ad_id=served),
        **concentration_metrics(data, popularity, ranked[:, 0]),
        **list_metrics(data, setup.shared, popularity.gather(1, setup.shared.clamp_min(0)), ""),
        **list_metrics(data, top, popularity.gather(1, top.clamp_min(0)), "_own"),
        **pool_metrics(value),
    }


def validation_metrics(model: HHD, setup: Setup) -> dict[str, float]:
    """Return the expected value on validation requests, for curves and tuning."""
    data = setup.validation
    log_prob = path_log_prob(model, setup.world, data.request_id, data.eligible)
    by_ad = ad_distribution(log_prob.exp(), data)
    return value_metrics(data, "expected", distribution=by_ad)


def starting_model(
    start: str, out: Path, setup: Setup, market: str, seed: int, sizes: AlignmentPreset
) -> HHD:
    """Return what RL starts from; see `Ablation.start`."""
    fresh = build_model(setup.world, sizes.warm_start.model, seed)
    if start == "none":
        return fresh.eval()
    model = load_policy(checkpoint(out, "mtp" if start == "mtp" else "vaft", seed, market))
    if start == "mtp":
        train_critic(model, train_view(setup.world), sizes.warm_start, seed, setup.reward)
    elif start == "fresh_critic":
        model.hte.load_state_dict(fresh.hte.state_dict())
    return model.eval()


def vsl_model(saved_mtp: Path, world: World, sizes: AlignmentPreset, seed: int) -> HHD:
    """Return the MTP model with the head for the eCPM token that VSL needs."""
    warm = sizes.warm_start
    config = replace(warm.model, num_ecpm_buckets=warm.num_ecpm_buckets)
    model = build_model(world, config, seed)
    model.load_state_dict({**model.state_dict(), **load_policy(saved_mtp).state_dict()})
    return model
