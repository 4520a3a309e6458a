"""What all methods of a seed share: the market, the held-out requests and the warm start."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from agents.warm_start import build_model, train_critic, train_mtp, train_vaft
from benchmarks.alignment.presets import SUITE, AlignmentPreset
from benchmarks.alignment.rows import BASE, on_market
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
from benchmarks.worlds import open_market
from gpr_rl.checkpoint import load_checkpoint, save_checkpoint
from gpr_rl.models import HHD
from gpr_rl.policy import load_policy, save_policy
from simulators.markets import log_view, train_view
from simulators.rankers.cards import OVERALL, ranker_card
from simulators.rewards import RewardMix
from simulators.world import World


def rows_frame(
    method: str, seed: int, step: int, split: str, metrics: dict[str, float]
) -> pd.DataFrame:
    """Return tidy rows; what is not finite does not apply and has none."""
    return tidy(SUITE, method, seed, applicable(metrics), step=step, split=split)


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
    def load(cls, path: Path, world: World, reward: RewardMix) -> "Setup":
        """Read what `save` wrote."""
        tensors, _ = load_checkpoint(path)

        def part(name: str) -> EvaluationSet:
            start = name + "."
            own = {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}
            return EvaluationSet.from_tensors(own)

        return cls(
            world, reward, part("data"), part("validation"), tensors["shared"], tensors["warm"]
        )


def checkpoint(out: Path, row: str, seed: int) -> Path:
    """Return where a row's weights are kept."""
    return out / "checkpoints" / f"{row}-seed{seed}.safetensors"


def _card_rows(world: World, name: str, seed: int) -> list[pd.DataFrame]:
    """Return the grades of the world's rankers, as rows of the method `rankers`."""
    metrics: dict[str, float] = {}
    for part in ("pctr", "pcvr", "regime"):
        for key, value in world.ranker_card.get(part, {}).items():
            if not isinstance(value, str):
                metrics[f"{part}/{key}"] = value
    for task, groups in ranker_card(world, with_oracle=False).items():
        for group, grades in groups.items():
            metrics |= {f"{task}/{group}/{k}": v for k, v in grades.items() if group != OVERALL}
    return [rows_frame(name, seed, 0, "test", metrics)]


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
    loaded = open_market(world, market, seed)
    mix = RewardMix.from_specs(list(reward))
    saved_mtp = checkpoint(out, on_market("mtp", market), seed)
    model, logs, seconds = train_warm_start(loaded, sizes, mix, seed, saved_mtp, world)
    saved = checkpoint(out, on_market("vaft", market), seed)
    save_policy(model, saved, world=world, method="vaft", seed=seed)
    scoring = time.perf_counter()
    data = make_evaluation_set(loaded, mix, sizes.num_test_requests)
    validation = make_evaluation_set(loaded, mix, sizes.num_validation_requests, "validation")
    evaluating = time.perf_counter()
    beam = policy_beam(model, loaded, data.request_id, data.eligible, sizes.list_size)
    warm = path_log_prob(model, loaded, data.request_id, data.eligible)
    setup = Setup(loaded, mix, data, validation, beam.ad_id, warm)
    setup.save(checkpoint(out, on_market("evaluation", market), seed))

    def named(method: str) -> str:
        return on_market(method, market)

    rows = [_reference_rows(setup, market, seed, sizes.list_size)]
    if market == BASE:
        rows += _card_rows(loaded, "rankers", seed)
    else:
        regime = loaded.ranker_card.get("regime", {})
        metrics = {f"regime/{k}": v for k, v in regime.items() if not isinstance(v, str)}
        rows.append(rows_frame(named("rankers"), seed, 0, "test", metrics))
    for name, policy in (("mtp", load_policy(saved_mtp)), ("vaft", model)):
        reference = warm if name == "mtp" else None
        metrics = evaluate_model(policy, loaded, data, setup.shared, reference, sizes.list_size)
        metrics["train_s"] = seconds[name]
        rows.append(rows_frame(named(name), seed, 0, "test", metrics))
    for (stage, step), logged in logs.items():
        rows.append(rows_frame(named(f"warm_{stage}"), seed, step + 1, "train", logged))
    ended = time.perf_counter()
    spent = {
        "total_s": ended - started,
        "update_s": seconds["vaft"],
        "rankers_s": evaluating - scoring,
        "evaluation_s": ended - evaluating,
    }
    rows.append(rows_frame(named("vaft"), seed, 0, "time", spent))
    return pd.concat(rows, ignore_index=True)


def _reference_rows(setup: Setup, market: str, seed: int, list_size: int) -> pd.DataFrame:
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
    frames = [
        rows_frame(on_market(name, market), seed, 0, "test", metrics)
        for name, metrics in found.items()
    ]
    return pd.concat(frames, ignore_index=True)


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
    start: str,
    out: Path,
    world: World,
    market: str,
    seed: int,
    sizes: AlignmentPreset,
    reward: RewardMix,
) -> HHD:
    """Return what RL starts from; see `Ablation.start`."""
    fresh = build_model(world, sizes.warm_start.model, seed)
    if start == "none":
        return fresh.eval()
    model = load_policy(
        checkpoint(out, on_market("mtp" if start == "mtp" else "vaft", market), seed)
    )
    if start == "mtp":
        train_critic(model, train_view(world), sizes.warm_start, seed, reward)
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
