"""The alignment suite end to end on the smallest world."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent
TIMES = re.compile(r"_(?:s|ms|per_s)$")


def command(out: Path, *flags: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.run", "--preset", "smoke", "--out", str(out), *flags],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
    )


def numbers(out: Path) -> pd.DataFrame:
    table = pd.read_parquet(out / "results.parquet")
    table = table[~table["metric"].str.contains(TIMES)]
    return table.sort_values(list(table.columns[:-1])).reset_index(drop=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = command(out, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "Value alignment" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_a_run_leaves_everything_it_promises(finished: Path) -> None:
    for name in ("config.json", "results.parquet", "summary.csv", "report.html", "log.jsonl"):
        assert (finished / name).stat().st_size > 0, name
    results = pd.read_parquet(finished / "results.parquet")
    columns = ["suite", "method", "seed", "step", "split", "metric", "value"]
    assert list(results.columns) == columns
    assert results["value"].abs().max() < float("inf")
    test = results[results["split"] == "test"]
    rows = {"logging", "popularity", "mtp", "vaft", "dpo", "ppo", "grpo", "hepo", "hepo_terminal"}
    assert rows | {"proxy_argmax", "best"} <= set(test["method"])
    illegal = test[test["metric"].isin(["illegal_rate", "illegal_mass"])]
    assert (illegal["value"].abs() < 1e-5).all()
    assert (test[test["metric"] == "illegal_rate"]["value"] == 0).all()
    page = (finished / "report.html").read_text()
    assert "http" not in re.sub(
        r"http://www.w3.org|https?://purl.org|http://creativecommons", "", page
    )
    config = json.loads((finished / "config.json").read_text())
    assert config["settings"]["sizes"]["training"]["num_steps"] > 0
    for method in ("hepo", "ppo"):
        assert (finished / "checkpoints" / f"{method}-seed0.safetensors").is_file()


@pytest.mark.slow
def test_numbers_do_not_depend_on_workers_or_interruptions(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = command(out, "--workers", "1", "--methods", "hepo", "dpo")
    assert first.returncode == 0, first.stderr
    whole = numbers(finished)
    mine = numbers(out)
    same = whole[whole["method"].isin(mine["method"].unique())].reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, same, check_exact=True)
    # lose a finished part and its policy: only that task runs again, from its checkpoint
    (out / "parts" / "hepo-seed1.parquet").unlink()
    (out / "results.parquet").unlink()
    again = command(out, "--workers", "2", "--methods", "hepo", "dpo", "--resume")
    assert again.returncode == 0, again.stderr
    pd.testing.assert_frame_equal(numbers(out), mine, check_exact=True)
    # a damaged checkpoint stops the run by name and stays as it is
    damaged = out / "checkpoints" / "hepo.train-seed1.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:200])
    (out / "parts" / "hepo-seed1.parquet").unlink()
    stopped = command(out, "--methods", "hepo", "dpo", "--resume")
    assert stopped.returncode != 0
    assert "hepo.train-seed1.safetensors" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert damaged.stat().st_size == 200
    other = command(out, "--methods", "hepo", "--resume")
    assert other.returncode == 2
    assert "methods" in other.stderr


REWARDS = """
import torch


def raises(outcome):
    raise RuntimeError("broken on purpose")


def wrong_shape(outcome):
    return outcome.ecpm[:, :1]


def infinite(outcome):
    return outcome.ecpm / 0.0


def half(outcome):
    return outcome.ecpm / 2
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "'my_rewards:raises' raised RuntimeError: broken on purpose"),
        ("wrong_shape", "'my_rewards:wrong_shape' must return shape"),
        ("infinite", "'my_rewards:infinite' returned inf for request"),
    ],
)
def test_a_bad_reward_stops_the_run_in_one_line(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    import os

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", "--preset", "smoke", "--methods", "grpo",
         "--seeds", "1", "--reward", f"my_rewards:{name}", "--out", str(tmp_path / "run")],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods", "nonsense"], "unknown method 'nonsense'"),
        (["--methods", "tokenizers"], "tokenizers"),
        (["--world", "atlantis"], "unknown world 'atlantis'"),
        (["--reward", "no_module:f"], "no_module"),
        (["--reward", "nothing"], "unknown reward 'nothing'"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
    ],
)
def test_mistakes_are_named_before_any_work(flags: list[str], message: str, tmp_path: Path) -> None:
    done = command(tmp_path / "run", *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
