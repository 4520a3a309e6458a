"""The alignment suite end to end on the smallest world."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from agents.trainer import train
from agents.warm_start import warm_start
from benchmarks.alignment.presets import PRESETS
from benchmarks.alignment.rows import labelled
from benchmarks.evaluation import (
    ad_distribution,
    make_evaluation_set,
    path_log_prob,
    value_metrics,
)
from benchmarks.runs.results import COLUMNS
from simulators.make import load_world
from simulators.rewards import RewardMix

ROOT = Path(__file__).resolve().parents[3]
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
    assert list(results.columns) == COLUMNS
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
    other = command(out, "--world", "weak", "--resume")
    assert other.returncode == 2
    assert "world" in other.stderr


@pytest.mark.slow
def test_a_run_grows_by_rows_and_what_was_there_stays(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    # One seed without tuning, then a market, ablations and an untuned method of one's own on top.
    first = command(out, "--methods", "ppo", "hepo", "--seeds", "1")
    assert first.returncode == 0, first.stderr
    before = numbers(out)
    grown = command(
        out, "--resume", "--seeds", "2", "--methods", "examples.custom_method:ranks",
        "--markets", "drift", "tight_budgets", "--ablate", "arr", "critic_replay", "pessimistic",
        "--publish", str(tmp_path / "docs"),
    )  # fmt: skip
    assert grown.returncode == 0, grown.stderr
    assert "of" in grown.stderr
    after = numbers(out)
    rows = set(labelled(after)["method"])
    assert {"ranks", "ranks@drift", "hepo+arr@drift", "hepo+critic_replay"} <= rows
    assert {"ppo@tight_budgets", "vaft@drift", "logging@tight_budgets"} <= rows
    kept = after.merge(before[before.columns[:-1]], on=list(before.columns[:-1]))
    kept = kept.sort_values(list(before.columns[:-1])).reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, before, check_exact=True)
    # Its base rows are those of a run that had them from the start.
    whole, after = labelled(numbers(finished)), labelled(after)
    mine = after[after["method"].isin(["ppo", "hepo"])].reset_index(drop=True)
    same = whole[whole["method"].isin(["ppo", "hepo"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, same, check_exact=True)
    page = (tmp_path / "docs" / "alignment.md").read_text()
    for heading in ("## Markets", "## Ablations", "## Under which conditions HEPO is ahead"):
        assert heading in page
    nothing = command(out, "--resume")
    assert nothing.returncode == 0, nothing.stderr
    assert re.search(r"(\d+) of \1 tasks were finished before", nothing.stderr)


@pytest.mark.slow
def test_a_local_ray_cluster_gives_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "run"
    done = command(out, "--launcher", "ray", "--methods", "grpo", "--seeds", "1")
    assert done.returncode == 0, done.stderr
    mine, whole = numbers(out), numbers(finished)
    same = whole[whole["method"].isin(mine["method"].unique()) & (whole["seed"] == 0)]
    pd.testing.assert_frame_equal(mine, same.reset_index(drop=True), check_exact=True)


@pytest.mark.slow
def test_rl_does_not_quietly_hurt(finished: Path) -> None:
    results = pd.read_parquet(finished / "results.parquet")
    test = results[(results["split"] == "test") & (results["metric"] == "proxy_expected")]
    mean = test.groupby("method")["value"].mean()
    for method in ("hepo_terminal", "ppo"):
        assert mean[method] > mean["vaft"], method


@pytest.mark.slow
def test_the_regression_test_would_see_a_harmful_objective() -> None:
    world = load_world("tiny", seed=0)
    stages = PRESETS["smoke"].warm_start
    model = warm_start(world, stages, 0)
    data = make_evaluation_set(world, RewardMix.from_specs([]), 40)

    def expected() -> float:
        log_prob = path_log_prob(model, world, data.request_id, data.eligible)
        by_ad = ad_distribution(log_prob.exp(), data)
        return value_metrics(data, "expected", distribution=by_ad)["proxy_expected"]

    before = expected()
    train(
        model, world, "ppo", PRESETS["smoke"].training, 0,
        reward=RewardMix.from_specs(["final_value=-1"]),
    )  # fmt: skip
    assert expected() < before


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
        (["--markets", "moon"], "--markets: unknown 'moon', choose from second_price"),
        (["--ablate", "everything"], "--ablate: unknown 'everything', choose from no_process"),
        (["--tune", "-1"], "--tune must be at least 0, got -1"),
        (
            ["--world", "journey-smoke", "--markets", "drift"],
            "--markets: 'drift' needs a synthetic world, got 'journey-smoke'",
        ),
        (["--methods", "no_module:mine"], "can't import 'no_module' for --methods"),
        (["--methods", "examples.custom_method:nothing"], "method 'nothing' is not registered"),
    ],
)
def test_mistakes_are_named_before_any_work(flags: list[str], message: str, tmp_path: Path) -> None:
    done = command(tmp_path / "run", *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
