"""The examples run as their first lines say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(name: str, folder: Path, *options: str) -> str:
    """Return what an example prints; it runs in another folder, as a user's script would."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *options, str(ROOT / "examples" / name)],
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
