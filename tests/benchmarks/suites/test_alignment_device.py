"""The alignment suite on a device finds what it finds on the CPU."""

import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from agents.placing import device_of
from benchmarks.alignment.presets import PRESETS
from benchmarks.alignment.suite import make_tasks
from benchmarks.runs.results import KEY, check_results
from benchmarks.settings import Settings
from gpr_rl.models import HHD
from gpr_rl.pretraining.trainer import StageConfig
from tests.references.accelerator import DEVICE, Accelerator

SMOKE = PRESETS["smoke"]
STAGE = StageConfig(num_steps=2)
TINY = replace(
    SMOKE,
    warm_start=replace(SMOKE.warm_start, mtp=STAGE, vaft=STAGE, critic=STAGE, num_windows=8),
    training=replace(SMOKE.training, num_steps=2, num_requests=8, critic_warmup_steps=0),
    tuning=replace(SMOKE.tuning, num_trials=2, num_steps=1, num_seeds=1),
    distil_steps=2,
    num_test_requests=12,
    num_validation_requests=6,
    validate_every=2,
    list_size=5,
)


def run_all(out: Path, device: str) -> pd.DataFrame:
    """Run every task here, in order, and return its rows."""
    settings: Settings[Any] = Settings(
        suite="alignment",
        preset="smoke",
        methods=("mtp", "vaft", "distilled", "vsl", "exp_sft", "ppo"),
        seeds=(0,),
        world="tiny",
        sizes=TINY,
        markets=("second_price",),
        ablations=("no_warm_start", "no_vaft", "fresh_critic", "pessimistic", "arr"),
        out=out,
        device=device,
    )
    (out / "checkpoints").mkdir(parents=True)
    found = []
    for task in make_tasks(settings):
        module, _, name = task.function.partition(":")
        rows = getattr(importlib.import_module(module), name)(**task.kwargs)
        if rows is not None:
            task.output.parent.mkdir(exist_ok=True)
            rows.to_parquet(task.output)
            found.append(rows)
        assert all(file.exists() for file in task.files), task.name
    return check_results(pd.concat(found, ignore_index=True), "all rows")


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_shapes")
def test_every_task_runs_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = run_all(tmp_path / "cpu", "cpu").set_index(KEY)["value"]
    encode, places = HHD.encode, set()

    def watched(model: HHD, *args: Any, **kwargs: Any) -> Any:
        places.add(device_of(model))
        return encode(model, *args, **kwargs)

    monkeypatch.setattr(HHD, "encode", watched)
    with Accelerator():
        on_device = run_all(tmp_path / "device", str(DEVICE)).set_index(KEY)["value"]
    assert places == {DEVICE}
    assert set(on_device.index) == set(on_cpu.index)
    table = pd.DataFrame({"cpu": on_cpu, "device": on_device}).reset_index()
    table = table[table["metric"].str.match(r"(truth|proxy)_share_(expected|served)")]
    assert table["method"].nunique() > 8
    assert ((table["cpu"] - table["device"]).abs() < 0.02).all(), table


@pytest.mark.parametrize("device", ["cuda:7", "abacus"])
def test_a_device_that_is_not_here_is_refused(tmp_path: Path, device: str) -> None:
    run = [sys.executable, "-m", "benchmarks.run", "--preset", "smoke", "--device", device]
    done = subprocess.run([*run, "--out", str(tmp_path / "x")], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --device {device} can't be used here: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()
