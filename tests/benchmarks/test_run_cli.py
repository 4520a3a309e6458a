import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.errors import UserError
from benchmarks.reports.lookup import SUMMARY_COLUMNS
from benchmarks.run import main
from benchmarks.runs import folder as run_folder
from benchmarks.runs.results import (
    COLUMNS,
    CONDITIONS,
    complete,
    empty_results,
    published,
    write_results,
)
from benchmarks.runs.runner import _without_needs, check_files
from benchmarks.runs.tasks import Task
from tests.benchmarks.fake_suite import SUITE, ExtendableFlags

SUITES = {"fake": SUITE, "other": SUITE}


def run(*argv: str) -> int:
    return main(["fake", "--preset", "smoke", *argv], SUITES)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Run two methods on two seeds with one worker."""
    out = tmp_path_factory.mktemp("run") / "one"
    assert run("--methods", "good", "BAD", "--workers", "1", "--out", str(out)) == 0
    return out


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """Return a copy of the finished run that a test may spoil."""
    folder = tmp_path / "copy"
    for name, content in contents(finished).items():
        target = folder / Path(name).relative_to(finished)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    (folder / "checkpoints").mkdir(exist_ok=True)
    return folder


def resume(folder: Path, *argv: str) -> int:
    return run("--methods", "good", "bad", "--out", str(folder), "--resume", *argv)


def test_a_run_writes_everything(finished):
    table = pd.read_parquet(finished / "results.parquet")
    assert list(table.columns) == COLUMNS
    assert len(table) == 2 * 2 * (3 + 2)
    assert np.isfinite(table["value"]).all()
    assert table.query("metric == 'threads'")["value"].eq(1.0).all()

    summary = pd.read_csv(finished / "summary.csv").set_index(["method", "split", "metric"])
    assert [name for name in summary.columns if name not in CONDITIONS] == [
        "suite", "num_seeds", "iqm", "ci_low", "ci_high",
    ]  # fmt: skip
    row = summary.loc["good", "test", "value"]
    # Two seeds: 1 and 1 + 1/3; the percentile interval of two values is their range.
    assert (row.num_seeds, row.ci_low) == (2, 1.0)
    assert (row.iqm, row.ci_high) == pytest.approx((7 / 6, 4 / 3))
    # Of a curve the last step counts: 3 * 1 and 3 * 1 + 1/3.
    assert summary.loc["good", "validation", "value"].iqm == pytest.approx(3 + 1 / 6)
    assert list(pd.read_csv(finished / "summary.csv").columns) == SUMMARY_COLUMNS

    config = json.loads((finished / "config.json").read_text())
    assert config["settings"]["methods"] == ["good", "bad"]
    assert config["settings"]["seeds"] == [0, 1]
    assert config["settings"]["sizes"]["num_steps"] == 3
    assert {"versions", "git_commit", "platform"} <= set(config)
    for name in ("report.html", "figures/curves.png", "figures/curves.svg"):
        assert (finished / name).stat().st_size > 500
    log = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert {"task": "good, seed 1", "step": 3, "num_steps": 3, "loss": None} in log
    assert not list(finished.rglob("*.tmp"))


def test_worker_count_changes_no_bit(finished, tmp_path, capfd):
    out = tmp_path / "two"
    assert run("--methods", "good", "bad", "--workers", "2", "--out", str(out)) == 0
    for name in ("results.parquet", "summary.csv", "figures/curves.svg", "figures/curves.png"):
        assert (out / name).read_bytes() == (finished / name).read_bytes()
    printed = capfd.readouterr()
    assert "Values & <gains>" in printed.out
    for text in printed:
        assert "\x1b" not in text
        assert "\r" not in text


def test_a_run_is_not_overwritten(finished, capsys):
    before = contents(finished)
    assert run("--methods", "good", "bad", "--out", str(finished)) == 2
    assert str(finished) in capsys.readouterr().err
    assert contents(finished) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--seeds", "3"], "seeds = [0, 1], this command says [0, 1, 2]"),
        (["--world", "small"], 'world = "tiny", this command says "small"'),
        (["--preset", "quick"], 'preset = "smoke", this command says "quick"'),
        (["--reward", "ecpm"], 'reward = [], this command says ["ecpm"]'),
    ],
)
def test_resume_needs_the_same_settings(finished, capsys, change, named):
    before = contents(finished)
    assert resume(finished, *change) == 2
    assert named in capsys.readouterr().err
    assert contents(finished) == before


@pytest.mark.parametrize("found", [None, 1, 3])
def test_resume_refuses_the_folder_of_another_version(copy, capsys, found):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "format": found}))
    before = contents(copy)
    assert resume(copy) == 2
    error = capsys.readouterr().err
    assert f"{copy} was made by another version" in error
    assert "start a new folder" in error
    assert len(error.splitlines()) == 1
    assert contents(copy) == before


def test_an_extendable_run_grows_by_what_is_new(finished, copy, capsys):
    (copy / "calls.txt").unlink()
    wider = {"fake": replace(SUITE, flags=ExtendableFlags)}
    flags = ["fake", "--preset", "smoke", "--out", str(copy), "--resume"]
    assert main([*flags, "--seeds", "3", "--methods", "good"], wider) == 0
    assert sorted((copy / "calls.txt").read_text().splitlines()) == ["bad 2", "good 2"]
    config = json.loads((copy / "config.json").read_text())
    assert config["settings"]["seeds"] == [0, 1, 2]
    assert config["settings"]["methods"] == ["good", "bad"]
    before = pd.read_parquet(finished / "results.parquet")
    after = pd.read_parquet(copy / "results.parquet")
    pd.testing.assert_frame_equal(
        after[after["seed"] < 2].reset_index(drop=True), before.reset_index(drop=True)
    )
    # Without flags the run is what it has become, and nothing is left to do.
    (copy / "calls.txt").unlink()
    assert main(flags, wider) == 0
    assert not (copy / "calls.txt").exists()
    assert main([*flags, "--world", "small"], wider) == 2
    assert 'world = "tiny"' in capsys.readouterr().err


def test_flags_that_a_suite_has_not_are_refused(tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    for flag, value in (
        ("--markets", "drift"),
        ("--ablate", "kl_0"),
        ("--tune", "3"),
        ("--logger", "csv"),
        ("--protocol", "time"),
        ("--embeddings", "x.npy"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(flag, value, *out)
        assert stopped.value.code == 2
        assert flag in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["alignment", "--logger", "paper", *out])
    assert stopped.value.code == 2
    assert "tensorboard" in capsys.readouterr().err
    assert run("--methods", "mine:own", *out) == 2
    assert "unknown method 'mine:own'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_report_is_published_as_markdown(tmp_path):
    docs = tmp_path / "docs"
    flags = ["--methods", "good", "bad", "--out", str(tmp_path / "run"), "--publish", str(docs)]
    assert run(*flags) == 0
    page = (docs / "fake.md").read_text()
    assert page.startswith("# A fake comparison\n")
    assert "| good | value | 1.17 [1.00, 1.33] | 2 |" in page
    assert "](fake/curves.png)" in page
    assert (docs / "fake" / "curves.png").stat().st_size > 500


def test_a_pages_table_keeps_all_but_earlier_steps_of_training():
    rows = [("train", 1, "loss"), ("train", 2, "loss"), ("train", 1, "rate"), ("time", 0, "fit_s")]
    rows += [("validation", 1, "loss"), ("validation", 2, "loss")]
    table = pd.DataFrame(rows, columns=["split", "step", "metric"])
    table = complete(table.assign(suite="fake", method="good", seed=0, value=1.0), "rows")
    kept = published(table)[["split", "step", "metric"]]
    assert list(kept.itertuples(index=False, name=None)) == rows[1:]


def test_resume_runs_only_what_is_missing(finished, copy, capsys):
    (copy / "parts" / "good-seed1.parquet").unlink()
    (copy / "calls.txt").unlink()
    assert resume(copy) == 0
    assert (copy / "calls.txt").read_text() == "good 1\n"
    assert "5 of 6 tasks were finished before" in capsys.readouterr().err
    same = (copy / "results.parquet").read_bytes() == (finished / "results.parquet").read_bytes()
    assert same


def test_resume_says_what_changed_since(copy, capsys):
    config = json.loads((copy / "config.json").read_text())
    config["versions"]["torch"] = "1.0"
    (copy / "config.json").write_text(json.dumps(config))
    assert resume(copy) == 0
    assert "warning: versions.torch was 1.0 when the run began" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["parts/good-seed1.parquet", "results.parquet", "config.json", "checkpoints/good.safetensors"],
)
def test_a_damaged_file_stops_the_run_and_stays(copy, capsys, name):
    path = copy / name
    path.write_bytes(path.read_bytes()[:-20] if path.exists() else b"\x10\x00")
    (copy / "parts" / "bad-seed1.parquet").unlink()  # there would be work to do
    before = contents(copy)
    assert resume(copy) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert "Traceback" not in error
    after = contents(copy)
    after[str(copy / "log.jsonl")] = before[str(copy / "log.jsonl")]  # says that it was tried
    assert after == before


def test_a_missing_file_of_a_finished_task_is_named(copy, capsys):
    (copy / "prepared-0").unlink()
    assert resume(copy) == 2
    assert f"{copy / 'prepared-0'} is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "code", "message"),
    [
        ("crash", 1, "error: task 'crash, seed 0' failed: RuntimeError: the engine fell off"),
        ("mistake", 2, "error: task 'mistake, seed 0': reward 'x' returned inf for request 7"),
        ("die", 1, "error: task 'die, seed 0' failed: its process died"),
        ("nan", 1, "'value' of 'nan', seed 0, step 1, is nan; what does not apply must have no"),
    ],
)
def test_a_failing_task_is_one_line(tmp_path, capsys, method, code, message):
    out = tmp_path / "run"
    argv = ["--methods", "good", method, "--seeds", "1", "--workers", "1", "--out", str(out)]
    assert run(*argv) == code
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert "Traceback" not in error
    assert (out / "parts" / "good-seed0.parquet").exists()
    if method == "crash":
        assert run(*argv, "--resume", "--debug") == code
        assert "in work" in capsys.readouterr().err
        assert (out / "calls.txt").read_text().splitlines() == ["good 0", "crash 0", "crash 0"]


def test_other_rows_go_on_and_the_report_can_leave_a_failing_one_out(tmp_path, capsys):
    out = tmp_path / "run"
    argv = ["fake", "--preset", "smoke", "--workers", "1", "--out", str(out)]
    suites = {"fake": replace(SUITE, flags=ExtendableFlags)}
    assert main([*argv, "--methods", "crash", "bad", "good"], suites) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "task 'crash, seed 0' failed: RuntimeError: the engine fell off" in last
    assert "(so did crash, seed 1)" in last
    assert len((out / "calls.txt").read_text().splitlines()) == 6
    assert not (out / "report.html").exists()
    for _ in range(2):  # and again: the row is gone, the command stays valid
        assert main([*argv, "--resume", "--without", "crash"], suites) == 0
    assert len((out / "calls.txt").read_text().splitlines()) == 6
    assert set(pd.read_parquet(out / "results.parquet")["method"]) == {"bad", "good"}


def test_what_needs_a_failed_task_is_not_run():
    def task(name: str, *needs: str) -> Task:
        return Task(name=name, function="none:none", needs=needs, out=Path(name))

    waiting = [task("b", "a"), task("c"), task("d", "b", "c"), task("e", "c")]
    assert [left.name for left in _without_needs(waiting, "a")] == ["c", "e"]


def test_a_damaged_tuning_file_is_named(tmp_path):
    tuned = tmp_path / "tuned.json"
    task = Task(name="tuning x", function="none:none", out=tmp_path, files=(tuned,))
    write_results(task.output, empty_results())
    tuned.write_text('{"a": ')
    with pytest.raises(
        UserError, match=r"can't read .*tuned\.json.*remove .*parts/tuning-x\.parquet to run"
    ):
        check_files([task], tmp_path)
    tuned.write_text("{}")
    assert check_files([task], tmp_path) == {"tuning x"}


def test_a_start_that_wrote_no_settings_holds_no_run(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError("no space left")

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "write_json", fail)
        assert run("--methods", "good", "--out", str(out)) == 2
    assert run("--methods", "good", "bad", "--out", str(out)) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--methods", "hepa"], "unknown method 'hepa': suite 'fake' has good, bad, crash"),
        (["--methods", "good", "other"], "'other' is a suite, not a method"),
        (["--methods", "good", "good"], "method 'good' is given twice"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--workers", "0"], "--workers must be at least 1, got 0"),
        (["--first-seed", "-1"], "--first-seed must be at least 0, got -1"),
        (["--world", "nowhere"], "unknown world 'nowhere'"),
        (["--reward", "nothing"], "unknown reward 'nothing'"),
        (["--reward", "no_such_module:f"], "no_such_module"),
        (["--reward", "ecpm=heavy"], "'heavy' is not a number"),
        (["--preset", "paper"], "has no preset 'paper'"),
        (["--without", "hepa"], "--without: unknown 'hepa', choose from good, bad, crash"),
        (["--methods", "good", "--without", "good"], "--without leaves no method"),
    ],
)
def test_mistakes_end_before_any_work(tmp_path, capsys, argv, message):
    out = tmp_path / "run"
    assert run("--out", str(out), *argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_unknown_suite(capsys):
    assert main(["fancy"], SUITES) == 2
    assert "unknown suite 'fancy': choose one of fake, other" in capsys.readouterr().err


def test_ray_is_optional(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run("--launcher", "ray", "--out", str(tmp_path / "run")) == 2
    assert "Ray, which is not installed" in capsys.readouterr().err


def test_reward_module_of_the_current_directory(tmp_path, capsys, monkeypatch):
    (tmp_path / "my_rewards_here.py").write_text("def mine(outcome):\n    return outcome.ecpm\n")
    monkeypatch.chdir(tmp_path)
    assert run("--methods", "good", "--seeds", "1", "--reward", "my_rewards_here:mine=0.5") == 0
    assert (tmp_path / "runs" / "fake-smoke" / "report.html").exists()


def test_interrupted_run_goes_on(tmp_path):
    """Ctrl-C ends the children, exits with 130, and `--resume` finishes the rest."""
    out = tmp_path / "run"
    command = [
        sys.executable, "-c",
        "import signal, sys; from benchmarks.run import main\n"
        "from tests.benchmarks.fake_suite import SUITE\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.exit(main(sys.argv[1:], {'fake': SUITE}))",
        "fake", "--methods", "good", "bad", "--out", str(out), "--workers", "1", "--resume",
    ]  # fmt: skip
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen(
        command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not (out / "parts" / "good-seed0.parquet").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the children as well
    error = process.communicate(timeout=60)[1]  # up to the end of the last child's stderr
    assert process.returncode == 130
    assert error.splitlines()[-1].startswith("interrupted: the same command with --resume")
    assert "Traceback" not in error
    assert not (out / "results.parquet").exists()
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert "tasks were finished before" in done.stderr
    calls = (out / "calls.txt").read_text().splitlines()
    assert calls.count("good 0") == 1
    assert len(pd.read_parquet(out / "results.parquet")) == 2 * 2 * (3 + 2)
