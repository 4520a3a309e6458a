"""A step in shards: the whole batch's numbers, and the same bits on any number of processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from agents.methods import TrainConfig
from agents.trainer import train
from agents.training.shards import Shards, shares
from agents.warm_start import build_model
from gpr_rl.checkpoint import load_checkpoint
from gpr_rl.models import HHDConfig
from gpr_rl.policy import save_policy
from simulators.world import World
from tests.agents.training.test_rl_trainer import METHODS, config, policy, untimed
from tests.references.tabular import TableWorld

Trained = tuple[list[Tensor], list[Tensor], list[dict[str, float]]]
ONE_UPDATE = {"num_steps": 1, "num_epochs": 1, "critic_updates": 1, "critic_warmup_steps": 0}
"""Adam makes a whole step of a gradient that should be 0 and is 1e-18: compare gradients."""


UNWEIGHTED = {"clip_fraction", "kl_approx", "ESS", "mean_ratio", "max_ratio", "min_ratio"}
"""Diagnostics of torchrl's that count candidates which are not valid."""


def trained(method: str, **changes: Any) -> Trained:
    """The weights, their last gradients and what was measured."""
    world = TableWorld()
    world.for_state[0, :-1] = False  # one ad: no pair and no best candidate
    world.for_state[1] = False  # no ad at all, so shards have unequal numbers of candidates
    model = policy(world, seed=1)
    history = train(model, world, method, config(**changes), 0)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return [p.detach() for p in model.parameters()], gradients, [untimed(x) for x in history]


def check_alike(one: Trained, other: Trained) -> None:
    for x, y in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)
    for step, expected in zip(other[2], one[2], strict=True):
        assert step.keys() == expected.keys()
        for name, value in expected.items():
            if name not in UNWEIGHTED:
                assert step[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize("method", METHODS)
def test_shards_add_up_to_the_batch(method: str) -> None:
    changes: dict[str, Any] = {"kl_penalty": 0.1, "entropy_coefficient": 0.01, **ONE_UPDATE}
    if method == "hepo":
        changes["terminal"] = "batch"
    whole = trained(method, **changes)
    assert any(gradient.any() for gradient in whole[1])
    check_alike(whole, trained(method, num_shards=3, **changes))


def test_an_ads_baseline_is_of_the_whole_batch() -> None:
    """Its tables are in float32, whose rounding depends on the order."""
    whole, _, history = trained("grpo", baseline="ad")
    parts, _, by_shard = trained("grpo", baseline="ad", num_shards=3)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for one, other in zip(history, by_shard, strict=True):
        assert other["ad_count"] == pytest.approx(one["ad_count"], rel=1e-5)


def test_one_shard_is_the_batch_to_the_bit() -> None:
    whole, _, history = trained("hepo", critic_replay=1)
    one, _, same = trained("hepo", critic_replay=1, num_shards=1)
    assert all(torch.equal(x, y) for x, y in zip(whole, one, strict=True))
    assert history == same


def test_a_sharded_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    world, path = TableWorld(), tmp_path / "run.safetensors"
    settings = {"num_shards": 4, "critic_replay": 2, "baseline": "ad"}
    whole = policy(world, seed=1)
    train(whole, world, "hepo", config(**settings), 0)
    again = policy(world, seed=1)
    train(again, world, "hepo", config(num_steps=3, **settings), 0, checkpoint_path=path)
    again = policy(world, seed=2)
    train(again, world, "hepo", config(**settings), 0, checkpoint_path=path, resume=True)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    changed = config(**{**settings, "num_shards": 2})
    with pytest.raises(ValueError, match=r"num_shards=4, this run has 2"):
        train(again, world, "hepo", changed, 0, checkpoint_path=path, resume=True)


def test_shards_take_turns_and_are_put_together_in_order() -> None:
    shards = Shards(3)
    values = torch.arange(9)
    parts = shards.split(values)
    assert [part.tolist() for part in parts] == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert shards.sum(parts).tolist() == [3, 12, 21]
    counts = [torch.tensor(n) for n in (1, 0, 3)]
    assert [float(share) for share in shares(counts)] == [0.25, 0.0, 0.75]
    means = [torch.tensor(x) for x in (4.0, 99.0, 8.0)]
    assert shards.mean(means, counts) == 7.0
    with pytest.raises(ValueError, match="num_requests must be a multiple of the 3 shards, got 8"):
        shards.split(torch.arange(8))
    with pytest.raises(ValueError, match="num_requests must be a multiple of num_shards, 5"):
        TrainConfig(num_requests=64, num_shards=5)


# ---- several processes


def _work(rank: int, size: int, folder: str, num_shards: int | None) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    try:
        settings = ONE_UPDATE if num_shards is None else {"critic_replay": 1, "baseline": "ad"}
        for method in ("hepo", "dpo", "ppo"):
            found = trained(method, kl_penalty=0.1, num_shards=num_shards, **settings)
            torch.save(found, f"{folder}/{method}{rank}.pt")
    finally:
        dist.destroy_process_group()


def on_processes(size: int, folder: Path, num_shards: int | None) -> dict[str, list[Any]]:
    """What every rank ends with, by method."""
    folder.mkdir()
    mp.spawn(_work, (size, str(folder), num_shards), nprocs=size)
    return {
        method: [torch.load(folder / f"{method}{rank}.pt") for rank in range(size)]
        for method in ("hepo", "dpo", "ppo")
    }


@pytest.mark.slow
def test_one_two_and_four_processes_make_the_same_bits(tmp_path: Path) -> None:
    found = {size: on_processes(size, tmp_path / str(size), 4) for size in (1, 2, 4)}
    for method in ("hepo", "dpo", "ppo"):
        weights, _, history = found[1][method][0]
        for size in (2, 4):
            for other, _, log in found[size][method]:
                assert all(torch.equal(x, y) for x, y in zip(weights, other, strict=True))
                assert log == history


@pytest.mark.slow
def test_plain_processes_agree_with_one(tmp_path: Path) -> None:
    one = on_processes(1, tmp_path / "1", None)
    two = on_processes(2, tmp_path / "2", None)
    for method, [whole] in one.items():
        for found in two[method]:
            check_alike(whole, found)


def command(size: int, out: Path, *options: str) -> list[str]:
    """The command line on `size` processes."""
    program = ["-m", "agents.train", "hepo", "--out", str(out), *options]
    if size == 1:
        return [sys.executable, *program]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(size),
        *program,
    ]


@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_resumes_with_fewer(
    tmp_path: Path, world: World
) -> None:
    """SIGKILL of one of four; two go on, and end where one process alone ends."""
    start = tmp_path / "start.safetensors"
    save_policy(build_model(world, HHDConfig(dim=16), seed=0), start)
    dials = ["num_requests=16", "num_candidates=4", "critic_requests=16", "critic_warmup_steps=0"]
    shared = ["--initial-policy", str(start), "--num-shards", "4", "--checkpoint-every", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    short, long = ["--set", *dials, "num_steps=12"], ["--set", *dials, "num_steps=400"]

    whole = subprocess.run(
        command(1, tmp_path / "whole", *shared, *short), env=env, capture_output=True, text=True
    )
    assert whole.returncode == 0, whole.stderr
    out = tmp_path / "cut"
    with subprocess.Popen(
        command(4, out, *shared, *long), env=env, stderr=subprocess.PIPE, text=True
    ) as running:
        deadline = time.monotonic() + 120
        while not (out / "train.safetensors").exists():
            assert running.poll() is None, running.stderr
            assert time.monotonic() < deadline
            time.sleep(0.1)
        children = subprocess.run(
            ["pgrep", "-P", str(running.pid)], capture_output=True, text=True, check=True
        )
        os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
        _, errors = running.communicate(timeout=120)
    assert running.returncode != 0
    said = [line for line in errors.splitlines() if line.startswith("error: process")]
    assert said or "SIGKILL" in errors or "Signal 9" in errors
    assert all(re.search(r"lost the others .* go on with --resume", line) for line in said)

    _, meta = load_checkpoint(out / "train.safetensors")
    assert 0 < meta["step"] < 400
    settings = json.loads((out / "config.json").read_text())
    assert settings["config"]["num_shards"] == 4
    steps = meta["step"] + 4
    resumed = subprocess.run(
        command(2, out, *shared, "--resume", "--set", *dials, f"num_steps={steps}"),
        env=env,
        capture_output=True,
        text=True,
    )
    assert resumed.returncode == 0, resumed.stderr
    alone = subprocess.run(
        command(1, tmp_path / "alone", *shared, "--set", *dials, f"num_steps={steps}"),
        env=env,
        capture_output=True,
        text=True,
    )
    assert alone.returncode == 0, alone.stderr
    one, _ = load_checkpoint(tmp_path / "alone" / "train.safetensors")
    other, meta = load_checkpoint(out / "train.safetensors")
    assert meta["step"] == steps
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged] == list(range(1, steps + 1))
