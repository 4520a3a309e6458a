"""Trains one row of one seed and measures it; chooses every method's dials beforehand."""

import json
import time
from dataclasses import dataclass
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
from benchmarks.alignment.presets import DISTILLED, AlignmentPreset
from benchmarks.alignment.rows import Row
from benchmarks.alignment.setup import (
    Setup,
    checkpoint,
    rows_frame,
    starting_model,
    validation_metrics,
    vsl_model,
)
from benchmarks.evaluation import evaluate_model
from benchmarks.plugins import import_methods
from benchmarks.runs.files import write_bytes
from benchmarks.runs.tasks import log_progress
from benchmarks.runs.trials import with_choice
from benchmarks.worlds import BASE
from gpr_rl.checkpoint import CheckpointError
from gpr_rl.policy import load_policy, save_policy
from simulators.markets import train_view
from simulators.rankers.ensemble import pessimistic
from simulators.synthetic.arr import RehearsalWorld
from simulators.world import World


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a row is run, whatever its numbers; fields as those of `benchmarks.settings.Settings`."""

    resume: bool
    plugins: tuple[str, ...] = ()
    logger: str | None = None


def run_row(
    *,
    out: Path,
    world: str,
    reward: tuple[str, ...],
    seed: int,
    sizes: AlignmentPreset,
    row: Row,
    tuned: Path | None,
    execution: Execution,
) -> pd.DataFrame:
    """Train one row from the seed's warm start and return its results."""
    import_methods(execution.plugins)
    started = time.perf_counter()
    setup = Setup.load(out, world, reward, seed, row.market)
    config = row.training(with_choice(method_config(row.method, sizes.training), tuned))
    ablation = ABLATIONS.get(row.ablation)
    name = str(row)
    start = "vaft" if ablation is None else ablation.start
    model = starting_model(start, out, setup, row.market, seed, sizes)
    curve_file = checkpoint(out, name, seed).with_suffix(".curve.json")
    curve = _read_curve(curve_file) if execution.resume else {}
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
        resume=execution.resume,
        logger=execution.logger
        and get_logger(execution.logger, str(out / "logger"), f"{name}-seed{seed}"),
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
    save_policy(model, checkpoint(out, name, seed), world=world, method=name, seed=seed)
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


def run_supervised(
    *,
    out: Path,
    world: str,
    reward: tuple[str, ...],
    seed: int,
    sizes: AlignmentPreset,
    method: str,
    tuned: Path | None = None,
) -> pd.DataFrame:
    """Train a row without RL and return its results; `tuned` holds what tuning chose.

    `vsl` and `exp_sft` stand in the place of VAFT, from the same MTP weights; what is `distilled`
    goes on from the warm start.
    """
    setup = Setup.load(out, world, reward, seed)
    loaded = setup.world
    started = time.perf_counter()
    if method in DISTILLED:
        model = load_policy(checkpoint(out, "vaft", seed))
        steps = DISTILLED[method] * sizes.distil_steps
        distil(model, loaded, setup.reward, DistilConfig(), steps, seed)
    else:
        saved = checkpoint(out, "mtp", seed)
        if method == "vsl":
            model = vsl_model(saved, loaded, sizes, seed)
            train_vsl(model, loaded, sizes.warm_start, seed)
        else:
            model = load_policy(saved)
            train_exp_sft(model, loaded, with_choice(sizes.warm_start, tuned), seed)
        train_critic(model, loaded, sizes.warm_start, seed, setup.reward)
    model.eval()
    train_s = time.perf_counter() - started
    save_policy(model, checkpoint(out, method, seed), world=world, method=method, seed=seed)
    metrics = evaluate_model(
        model, setup.world, setup.data, setup.shared, setup.warm, sizes.list_size
    )
    spent = {"total_s": time.perf_counter() - started, "update_s": train_s}
    spent["evaluation_s"] = spent["total_s"] - train_s
    return pd.concat(
        [
            rows_frame(method, seed, 0, "test", {**metrics, "train_s": train_s}, market=BASE),
            rows_frame(method, seed, 0, "time", spent, market=BASE),
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
