"""A small run of the off-policy suite from the command line."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from agents.off_policy import ips, read_parquet
from benchmarks.off_policy.presets import METHODS, PRESETS
from benchmarks.reports.page import write_report
from benchmarks.run import main
from benchmarks.runs.results import read_results, seed_table, under
from benchmarks.runs.tasks import run_task
from benchmarks.suite import load_suite
from tests.benchmarks.command import settings_of

TINY = replace(
    PRESETS["smoke"],
    num_requests=20,
    num_slate_requests=10,
    log_sizes=(50, 200),
    num_replications=8,
    warm_start=replace(
        PRESETS["smoke"].warm_start, mtp=replace(PRESETS["smoke"].warm_start.mtp, num_steps=2)
    ),
)


def test_a_run_writes_grades_logs_and_a_report(tmp_path: Path) -> None:
    suite = replace(load_suite("off_policy"), presets={"smoke": TINY})
    words = ["off_policy", "--preset", "smoke", "--out", tmp_path, "--seeds", 1]
    _, settings = settings_of(*words, suites={"off_policy": suite})
    (tmp_path / "checkpoints").mkdir()
    tasks = suite.make_tasks(settings)
    for task in tasks:
        ending = run_task(task, tmp_path / "log.jsonl")
        assert ending.error is None, ending.details
        assert all(path.is_file() for path in task.files)
    results = pd.concat([read_results(task.output) for task in tasks[1:]], ignore_index=True)
    assert {*METHODS, "truth"} == set(results["method"])
    assert set(results.loc[results["method"] == "dr", "step"]) == {50, 200}
    revenue = under(results, kind="ads", reward="revenue")
    assert 0 <= seed_table(revenue, "coverage")["ips"].item() <= 1
    worth = results.query("method == 'truth' and reward == 'clicks'")
    for kind in ("ads", "slates"):
        assert {"greedy", "hhd", "behavior"} < set(worth.loc[worth["kind"] == kind, "policy"])
    report = suite.finish(settings, results)
    assert [len(table.rows) for table in report.tables] == [6, 8]
    page = write_report(tmp_path, report, settings.to_json(), {}).read_text()
    assert "What it means" in page
    assert "logging values" in page
    log = read_parquet(tmp_path / "logs" / "behavior-seed0.parquet")
    assert len(log) == 20
    assert bool(ips(log.reward, log.propensity, log.propensity).value.isfinite())


@pytest.mark.slow
def test_numbers_do_not_depend_on_workers(tmp_path: Path) -> None:
    tables = []
    for workers in ("1", "2"):
        out = tmp_path / workers
        flags = ["off_policy", "--preset", "smoke", "--out", str(out), "--workers", workers]
        assert main([*flags, "--methods", "dr", "slate_rips"]) == 0
        tables.append(pd.read_parquet(out / "results.parquet"))
    pd.testing.assert_frame_equal(*tables, check_exact=True)


@pytest.mark.parametrize("world", ["journey", "journey-smoke"])
def test_a_world_without_truth_is_refused(
    world: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["off_policy", "--preset", "smoke", "--out", str(tmp_path / "run")]
    assert main([*flags, "--world", world]) == 2
    stderr = capsys.readouterr().err
    assert f"world {world!r} has none: choose one of small, " in stderr
    assert "Traceback" not in stderr
    assert stderr.count("\n") == 1
