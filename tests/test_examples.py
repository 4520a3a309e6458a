"""The examples run as their first lines say."""

import copy
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agents.methods import TrainConfig
from agents.rollout import RolloutConfig, rollout
from agents.trainer import train
from agents.warm_start import WarmStartConfig, warm_start
from gpr_rl.models import HHD
from simulators.world import World

ROOT = Path(__file__).resolve().parent.parent


def run(name: str, folder: Path, *options: str, arguments: tuple[str, ...] = ()) -> str:
    """Return what an example prints; it runs in another folder, as a user's script would."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *options, str(ROOT / "examples" / name), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_custom_reward_trains_for_its_reward(tmp_path: Path) -> None:
    lines = run("custom_reward.py", tmp_path).splitlines()
    pattern = r"(\w+) +(\S+) -> +(\S+) +(\S+) -> +(\S+)"
    found = {
        m[1]: [float(x) for x in m.groups()[1:]] for m in map(re.compile(pattern).match, lines) if m
    }
    assert set(found) == {"final_value", "affordable", "user_value"}
    before, after, weighted_before, weighted_after = found["affordable"]
    assert after > before + 0.05
    assert weighted_before == pytest.approx(60 * before, abs=0.31)  # two decimals are printed
    assert weighted_after == pytest.approx(60 * after, abs=0.31)
    assert found["final_value"][:2] == found["final_value"][2:]
    assert found["user_value"][0] > 0.0
    assert found["user_value"][2:] == [0.0, 0.0]


@pytest.mark.slow
def test_lightgbm_rankers_grade_both_and_reward_an_episode(tmp_path: Path) -> None:
    pytest.importorskip("lightgbm")
    text = run("lightgbm_rankers.py", tmp_path)
    (values,) = re.findall(r"pctr, overall: auc +(\S+) +(\S+) +(\S+)", text)
    _, trees, truth = map(float, values)
    assert 0.6 < trees < truth + 0.02
    assert re.search(r"ad \d+: pCTR 0\.\d+, pCVR 0\.\d+, reward \d+", text)


@pytest.mark.slow
def test_train_hepo_runs(tmp_path: Path) -> None:
    assert "mean reward" in run("train_hepo.py", tmp_path)


@pytest.mark.slow
def test_torchrl_collector_trains(tmp_path: Path) -> None:
    # torchrl 0.14 warns of its own classes when its collectors are imported: "Creating ... which
    # inherits from WeightUpdaterBase is deprecated". The option takes the beginning only.
    text = run("torchrl_collector.py", tmp_path, "-W", "ignore:Creating:DeprecationWarning")
    rewards = [float(x) for x in re.findall(r"reward +(\S+)", text)]
    assert len(rewards) == 20
    assert sum(rewards[-5:]) > 1.5 * sum(rewards[:5])


def worth(model: HHD, world: World) -> float:
    """The mean reward of a policy's draws on held-out requests, under the rankers."""
    ids = world.request_ids("test")[:512]
    data = rollout(model.eval(), world, ids, None, RolloutConfig(num_candidates=16), 7, 0)
    return float(data["reward"].mean())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Creating:DeprecationWarning")
def test_torchrls_loops_reach_what_the_trainer_reaches(world: World) -> None:
    """At the same number of ranker evaluations, from the same warm start."""
    steps, start = 30, warm_start(world, WarmStartConfig(), seed=0)
    trained = copy.deepcopy(start)
    settings = TrainConfig(num_steps=steps, critic_warmup_steps=0)
    train(trained, world, "hepo_terminal", settings, 0)
    goal = worth(trained, world)
    assert goal > 1.3 * worth(start, world)
    for name in ("torchrl_hepo", "torchrl_hepo_day"):
        assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) < 80
        module = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            looped = module["train"](copy.deepcopy(start), world, steps)
        assert worth(looped, world) > 0.95 * goal, name


@pytest.mark.slow
def test_maskable_ppo_learns(tmp_path: Path) -> None:
    pytest.importorskip("sb3_contrib")
    rewards = [float(x) for x in re.findall(r"reward +(\S+)", run("maskable_ppo.py", tmp_path))]
    assert len(rewards) == 10
    assert sum(rewards[-3:]) > 1.1 * sum(rewards[:3])


@pytest.mark.slow
def test_ppo_in_one_file_learns(tmp_path: Path) -> None:
    rewards = [float(x) for x in re.findall(r"reward +(\S+)", run("cleanrl_ppo.py", tmp_path))]
    assert len(rewards) == 40
    assert sum(rewards[-5:]) > 1.5 * sum(rewards[:5])


@pytest.mark.slow
def test_ray_workers_draw_what_the_learner_learns(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    text = run("torchrl_ray.py", tmp_path, "-W", "ignore", arguments=("tiny", "20"))
    found = re.findall(r"reward +(\S+) age (\d+) used (\d+)", text)
    assert len(found) == 20
    rewards, ages, used = ([float(row[i]) for row in found] for i in range(3))
    assert sum(rewards[-5:]) > 1.1 * sum(rewards[:5])
    assert max(ages) >= 1
    assert all(number == (64 if age <= 2 else 0) for age, number in zip(ages, used, strict=True))
