"""Tab. 3: does value alignment work? Warm start against DPO, PPO, GRPO and HEPO.

Every seed draws a world, its rankers and a warm start of its own; all methods of a seed start from
the same weights and meet the same requests, random streams and number of ranker evaluations, so
methods are compared inside a seed.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from agents.trainer import train
from agents.warm_start import (
    build_model,
    train_critic,
    train_mtp,
    train_vaft,
)
from benchmarks.alignment_presets import (
    METHODS,  # noqa: F401, what `load_suite` reads
    PRESETS,  # noqa: F401
    SUITE,
    WARM_ROWS,
    AlignmentPreset,
)
from benchmarks.alignment_report import make_report
from benchmarks.evaluation import (
    EvaluationSet,
    ad_distribution,
    evaluate_model,
    list_metrics,
    make_evaluation_set,
    path_log_prob,
    policy_beam,
    popularity_distribution,
    value_metrics,
)
from benchmarks.files import write_bytes
from benchmarks.report import SuiteReport
from benchmarks.suite import Settings
from benchmarks.tasks import Task, log_progress
from gpr_rl.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from gpr_rl.models import HHD
from gpr_rl.policy import load_policy, save_policy
from simulators.config import PRESETS as SYNTHETIC
from simulators.make import load_world, silent, world_names
from simulators.ranker_cards import OVERALL, ranker_card
from simulators.rewards import RewardMix
from simulators.world import World


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


def _checkpoint(out: Path, name: str, seed: int) -> Path:
    return out / "checkpoints" / f"{name}-seed{seed}.safetensors"


def world_seed(world: str, seed: int) -> int:
    """Return the seed of the world of a run's seed: a synthetic world is drawn anew for each."""
    return seed if world in SYNTHETIC else 0


def make_named_world(*, world: str, seed: int) -> None:
    """Make a named world unless it is cached."""
    load_world(world, seed=seed, progress=silent)


def _card_rows(world: World, seed: int) -> list[pd.DataFrame]:
    """Return the grades of the world's rankers, as rows of the method `rankers`."""
    metrics: dict[str, float] = {}
    for part in ("pctr", "pcvr", "regime"):
        for name, value in world.ranker_card.get(part, {}).items():
            if not isinstance(value, str):
                metrics[f"{part}/{name}"] = value
    for task, groups in ranker_card(world, with_oracle=False).items():
        for group, grades in groups.items():
            metrics |= {f"{task}/{group}/{k}": v for k, v in grades.items() if group != OVERALL}
    return [_rows("rankers", seed, 0, "test", metrics)]


def prepare_seed(
    *, out: Path, world: str, reward: tuple[str, ...], seed: int, sizes: AlignmentPreset
) -> pd.DataFrame:
    """Train the warm start of one seed; return reference and warm-start rows."""
    loaded = load_world(world, seed=world_seed(world, seed))
    mix = RewardMix.from_specs(list(reward))
    model = build_model(loaded, sizes.warm_start.model, seed)
    logs: dict[tuple[str, int], dict[str, float]] = {}
    stages = sizes.warm_start
    total = stages.mtp.num_steps + stages.vaft.num_steps + stages.critic.num_steps

    def on_stage(stage: str, step: int, logged: dict[str, float]) -> None:
        logs[stage, step] = logged
        if len(logs) % 20 == 0 or len(logs) == total:
            log_progress(len(logs), total, stage=stage, **logged)

    started = time.perf_counter()
    train_mtp(model, loaded, stages, seed, on_stage)
    mtp_s = time.perf_counter() - started
    model.eval()
    save_policy(model, _checkpoint(out, "mtp", seed), world=world, method="mtp", seed=seed)
    mtp = load_policy(_checkpoint(out, "mtp", seed))
    started = time.perf_counter()
    train_vaft(model, loaded, stages, seed, on_stage)
    train_critic(model, loaded, stages, seed, mix, on_stage)
    vaft_s = time.perf_counter() - started
    model.eval()
    save_policy(model, _checkpoint(out, "vaft", seed), world=world, method="vaft", seed=seed)
    data = make_evaluation_set(loaded, mix, sizes.num_test_requests)
    validation = make_evaluation_set(loaded, mix, sizes.num_validation_requests, "validation")
    beam = policy_beam(model, loaded, data.request_id, data.eligible, sizes.list_size)
    warm = path_log_prob(model, loaded, data.request_id, data.eligible)
    setup = Setup(loaded, mix, data, validation, beam.ad_id, warm)
    setup.save(_checkpoint(out, "evaluation", seed))
    rows = [*_card_rows(loaded, seed), _reference_rows(setup, seed, sizes.list_size)]
    for name, policy, seconds in (("mtp", mtp, mtp_s), ("vaft", model, mtp_s + vaft_s)):
        metrics = evaluate_model(
            policy, loaded, data, setup.shared, warm if name == "mtp" else None, sizes.list_size
        )
        rows.append(_rows(name, seed, 0, "test", {**metrics, "train_s": seconds}))
    for (stage, step), logged in logs.items():
        rows.append(_rows(f"warm_{stage}", seed, step + 1, "train", logged))
    return pd.concat(rows, ignore_index=True)


def _reference_rows(setup: Setup, seed: int, list_size: int) -> pd.DataFrame:
    """Return the rows that need no model (what RL must be compared with)."""
    data = setup.data
    rows = [
        _rows(
            "logging", seed, 0, "test", value_metrics(data, "expected", distribution=data.logging)
        )
    ]
    rows.append(_rows("popularity", seed, 0, "test", _popularity_metrics(setup, list_size)))
    rows.append(
        _rows(
            "proxy_argmax", seed, 0, "test", value_metrics(data, "greedy", ad_id=data.proxy_best())
        )
    )
    best = value_metrics(data, "greedy", ad_id=data.proxy_best())
    if data.truth is not None:
        true_best = data.truth.masked_fill(~data.eligible, -torch.inf).argmax(-1)
        by_truth = value_metrics(data, "greedy", ad_id=true_best)
        best.update({k: v for k, v in by_truth.items() if k.startswith("truth")})
    rows.append(_rows("best", seed, 0, "test", best))
    return pd.concat(rows, ignore_index=True)


def _popularity_metrics(setup: Setup, list_size: int) -> dict[str, float]:
    """Return the metrics of showing what most users clicked."""
    data = setup.data
    popularity = popularity_distribution(setup.world, data)
    ranked = popularity.argsort(dim=-1, descending=True, stable=True)
    top = ranked[:, :list_size]
    top = top.where(data.eligible.gather(1, top), -1)
    value = data.value.gather(1, top.clamp_min(0)).masked_fill(top < 0, -torch.inf)
    known = value.where(top >= 0, torch.nan)
    served = top.gather(1, value.argmax(-1, keepdim=True))[:, 0]
    return {
        **value_metrics(data, "expected", distribution=popularity),
        **value_metrics(data, "greedy", ad_id=ranked[:, 0]),
        **value_metrics(data, "served", ad_id=served),
        **list_metrics(data, setup.shared, popularity.gather(1, setup.shared.clamp_min(0)), ""),
        **list_metrics(data, top, popularity.gather(1, top.clamp_min(0)), "_own"),
        "avg_final_value": float(known.nanmean(-1).mean()),
        "max_final_value": float(value.amax(-1).mean()),
        "pool_min": float(known.nan_to_num(torch.inf).min()),
        "pool_max": float(value.max()),
    }


def run_method(
    *,
    out: Path,
    world: str,
    reward: tuple[str, ...],
    seed: int,
    sizes: AlignmentPreset,
    method: str,
    resume: bool,
) -> pd.DataFrame:
    """Train one method from the seed's warm start and return its rows."""
    loaded = load_world(world, seed=world_seed(world, seed))
    mix = RewardMix.from_specs(list(reward))
    setup = Setup.load(_checkpoint(out, "evaluation", seed), loaded, mix)
    model = load_policy(_checkpoint(out, "vaft", seed))
    curve = _Curve(_checkpoint(out, method, seed).with_suffix(".curve.json"), resume)
    if 0 not in curve.points:
        curve.add(0, _validation(model, setup))
    curve_s = 0.0

    def on_step(step: int, measures: dict[str, float]) -> None:
        nonlocal curve_s
        done = step + 1
        if done % sizes.validate_every == 0 or done == sizes.training.num_steps:
            started = time.perf_counter()
            curve.add(done, _validation(model, setup))
            curve_s += time.perf_counter() - started
        if done % 10 == 0:
            log_progress(done, sizes.training.num_steps, **measures)

    started = time.perf_counter()
    history = train(
        model,
        loaded,
        method,
        sizes.training,
        seed,
        reward=mix,
        on_step=on_step,
        checkpoint_path=_checkpoint(out, f"{method}.train", seed),
        resume=resume,
    )
    train_s = time.perf_counter() - started - curve_s
    rows = [_rows(method, seed, step, "train", m) for step, m in enumerate(history, start=1)]
    rows += [_rows(method, seed, step, "validation", m) for step, m in curve.points.items()]
    model.eval()
    save_policy(model, _checkpoint(out, method, seed), world=world, method=method, seed=seed)
    metrics = evaluate_model(model, loaded, setup.data, setup.shared, setup.warm, sizes.list_size)
    metrics["train_s"] = train_s
    rows.append(_rows(method, seed, sizes.training.num_steps, "test", metrics))
    return pd.concat(rows, ignore_index=True)


class _Curve:
    """Points of a learning curve, kept in a file so that `--resume` has those before it."""

    def __init__(self, path: Path, resume: bool) -> None:
        self._path = path
        self.points: dict[int, dict[str, float]] = {}
        if resume and path.exists():
            try:
                stored = json.loads(path.read_text())
                self.points = {int(step): point for step, point in stored.items()}
            except ValueError as error:
                raise CheckpointError(path, str(error)) from error

    def add(self, step: int, point: dict[str, float]) -> None:
        """Add or replace a point and write the file."""
        self.points[step] = point
        write_bytes(self._path, json.dumps(self.points).encode())


def _validation(model: HHD, setup: Setup) -> dict[str, float]:
    """Return the expected value on validation requests, for the learning curves."""
    data = setup.validation
    log_prob = path_log_prob(model, setup.world, data.request_id, data.eligible)
    by_ad = ad_distribution(log_prob.exp(), data)
    return value_metrics(data, "expected", distribution=by_ad)


def make_tasks(settings: Settings) -> list[Task]:
    """Return the worlds, then the warm starts, then every (method, seed) pair."""
    out, sizes = settings.out, settings.sizes
    assert isinstance(sizes, AlignmentPreset)
    tasks: list[Task] = []
    named = settings.world in world_names()
    for seed in sorted({world_seed(settings.world, s) for s in settings.seeds} if named else ()):
        tasks.append(
            Task(
                name=f"world, seed {seed}",
                function="benchmarks.alignment:make_named_world",
                kwargs={"world": settings.world, "seed": seed},
                output=out / "parts" / f"world-seed{seed}.parquet",
                cost=0.5,
            )
        )
    shared = {"out": out, "world": settings.world, "reward": settings.reward, "sizes": sizes}
    for seed in settings.seeds:
        of_world = (f"world, seed {world_seed(settings.world, seed)}",) if named else ()
        tasks.append(
            Task(
                name=f"warm start, seed {seed}",
                function="benchmarks.alignment:prepare_seed",
                kwargs={**shared, "seed": seed},
                needs=of_world,
                output=out / "parts" / f"warm-seed{seed}.parquet",
                files=tuple(_checkpoint(out, n, seed) for n in ("mtp", "vaft", "evaluation")),
                cost=2.0,
            )
        )
    for seed in settings.seeds:
        for method in settings.methods:
            if method in WARM_ROWS:
                continue
            tasks.append(
                Task(
                    name=f"{method}, seed {seed}",
                    function="benchmarks.alignment:run_method",
                    kwargs={**shared, "seed": seed, "method": method, "resume": settings.resume},
                    needs=(f"warm start, seed {seed}",),
                    output=out / "parts" / f"{method}-seed{seed}.parquet",
                    files=(_checkpoint(out, method, seed),),
                )
            )
    return tasks


def finish(settings: Settings, results: pd.DataFrame) -> SuiteReport:
    """Return the report of a finished run."""
    sizes = settings.sizes
    assert isinstance(sizes, AlignmentPreset)
    seed = world_seed(settings.world, settings.seeds[0])
    info = load_world(settings.world, seed=seed).info
    return make_report(
        results,
        methods=settings.methods,
        info=info,
        seeds=settings.seeds,
        training=sizes.training,
        num_test_requests=sizes.num_test_requests,
    )
