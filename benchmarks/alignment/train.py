"""Trains one row of one seed and measures it; chooses every method's dials beforehand."""

import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
from torchrl.record.loggers import get_logger

from agents.methods import method_config
from agents.train_config import TrainConfig
from agents.trainer import train
from agents.warm_start import train_critic, train_exp_sft, train_vsl
from benchmarks.alignment.ablations import ABLATIONS
from benchmarks.alignment.distilled import DistilConfig, distil
from benchmarks.alignment.presets import DISTILLED, SUPERVISED_SPACES, AlignmentSettings
from benchmarks.alignment.rows import Row
from benchmarks.alignment.setup import (
    Setup,
    checkpoint,
    rows_frame,
    saved_model,
    starting_model,
    validation_metrics,
    vsl_model,
)
from benchmarks.evaluation import evaluate_model
from benchmarks.plugins import import_methods
from benchmarks.runs.files import write_bytes
from benchmarks.runs.tasks import log_progress
from benchmarks.runs.trials import with_choice
from gpr_rl.checkpoint import CheckpointError
from gpr_rl.policy import save_policy
from simulators.markets import train_view
from simulators.rankers.ensemble import pessimistic
from simulators.synthetic.arr import RehearsalWorld
from simulators.world import World


def run_row(*, settings: AlignmentSettings, seed: int, row: Row) -> pd.DataFrame:
    """Train one row from the seed's warm start and return its results."""
    import_methods(settings.plugins)
    started = time.perf_counter()
    sizes, out = settings.sizes, settings.out
    setup = Setup.load(settings, seed, row.market)
    usual = method_config(row.method, sizes.training)
    config = row.training(with_choice(usual, settings.tuned_file(row.method)))
    ablation = ABLATIONS.get(row.ablation)
    name = str(row)
    start = "vaft" if ablation is None else ablation.start
    model = starting_model(start, settings, setup, row.market, seed)
    curve_file = checkpoint(out, name, seed).with_suffix(".curve.json")
    curve = _read_curve(curve_file) if settings.resume else {}
    curve_s = 0.0

    def measure(step: int) -> None:
        nonlocal curve_s
        began = time.perf_counter()
        curve[step] = validation_metrics(model, setup, sizes.list_size)
        write_bytes(curve_file, json.dumps(curve).encode())
        curve_s += time.perf_counter() - began

    if 0 not in curve:
        measure(0)

    def on_step(step: int, measures: dict[str, float]) -> None:
        done = step + 1
        if done % sizes.validate_every == 0 or done == config.num_steps:
            measure(done)
        if done % 10 == 0:
            log_progress(done, config.num_steps, **measures)

    ensemble = None
    if ablation is not None and ablation.rankers == "pessimistic":
        ensemble = checkpoint(out, "ensemble", seed, row.market)
    history = train(
        model,
        training_world(setup.world, config, seed, ensemble),
        row.method,
        config,
        seed,
        reward=setup.reward,
        on_step=on_step,
        checkpoint_path=checkpoint(out, f"{name}.train", seed),
        resume=settings.resume,
        logger=settings.logger
        and get_logger(settings.logger, str(out / "logger"), f"{name}-seed{seed}"),
    )

    def measured(step: int, split: str, metrics: dict[str, float]) -> pd.DataFrame:
        return rows_frame(row.method, seed, step, split, metrics, **row.conditions)

    rows = [measured(step, "train", m) for step, m in enumerate(history, start=1)]
    spent = pd.Series([m["step_s"] for m in history]).cumsum()
    for step, point in curve.items():
        point["train_s"] = float(spent[step - 1]) if step else 0.0
        rows.append(measured(step, "validation", point))
    began = time.perf_counter()
    model.eval()
    about = {"world": settings.world, "method": name, "seed": seed}
    save_policy(model, checkpoint(out, name, seed), **about)
    metrics = evaluate_model(
        model, setup.world, setup.data, setup.shared, setup.warm, sizes.list_size
    )
    metrics["train_s"] = float(spent.iloc[-1])
    rows.append(measured(config.num_steps, "test", metrics))
    ended = time.perf_counter()
    sections = pd.DataFrame(history).filter(like="time/").sum()
    times = {key.removeprefix("time/"): float(value) for key, value in sections.items()}
    times |= {"total_s": ended - started, "evaluation_s": ended - began + curve_s}
    rows.append(measured(0, "time", times))
    return pd.concat(rows, ignore_index=True)


def training_world(
    world: World, config: TrainConfig, seed: int, ensemble: Path | None = None
) -> Any:
    """Return what the trainer sees: the market, with rehearsed requests or an ensemble's rankers.

    The ensemble's weights are kept in a file, which is given where they are asked for.
    """
    seen = train_view(world)
    if ensemble is not None:
        seen = pessimistic(seen, seed=seed, path=ensemble)
    return RehearsalWorld(seen, seed) if config.arr_share else seen


def run_supervised(*, settings: AlignmentSettings, seed: int, row: Row) -> pd.DataFrame:
    """Train a row without RL and return its results.

    `vsl` and `exp_sft` stand in the place of VAFT, from the same MTP weights; what is `distilled`
    goes on from the warm start.
    """
    setup, method = Setup.load(settings, seed, row.market), row.method
    loaded, sizes, stages = train_view(setup.world), settings.sizes, settings.sizes.warm_start
    started = time.perf_counter()
    model = saved_model(settings, "vaft" if method in DISTILLED else "mtp", seed, row.market)
    if method in DISTILLED:
        steps = DISTILLED[method] * sizes.distil_steps
        distil(model, loaded, setup.reward, DistilConfig(), steps, seed)
    else:
        if method == "vsl":
            model = vsl_model(model, loaded, stages, seed)
            train_vsl(model, loaded, stages, seed)
        else:
            tuned = settings.tuned_file(method) if method in SUPERVISED_SPACES else None
            train_exp_sft(model, loaded, with_choice(stages, tuned), seed)
        train_critic(model, loaded, stages, seed, setup.reward)
    model.eval()
    train_s = time.perf_counter() - started
    about = {"world": settings.world, "method": str(row), "seed": seed}
    save_policy(model, checkpoint(settings.out, str(row), seed), **about)
    metrics = evaluate_model(
        model, setup.world, setup.data, setup.shared, setup.warm, sizes.list_size
    )
    metrics["train_s"] = train_s
    spent = {"total_s": time.perf_counter() - started, "update_s": train_s}
    spent["evaluation_s"] = spent["total_s"] - train_s
    return pd.concat(
        [
            rows_frame(method, seed, 0, "test", metrics, **row.conditions),
            rows_frame(method, seed, 0, "time", spent, **row.conditions),
        ],
        ignore_index=True,
    )


def _read_curve(path: Path) -> dict[int, dict[str, float]]:
    """Return the points of a learning curve that a run kept before it was stopped."""
    if not path.exists():
        return {}
    try:
        return {int(step): point for step, point in json.loads(path.read_text()).items()}
    except ValueError as error:
        raise CheckpointError(path, str(error)) from error
