"""The decoding suite as a whole: its tasks, and a run from rows to the page."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.decoding import catalogues, load, peers
from benchmarks.decoding.presets import METHODS, PRESETS, DecodingPreset
from benchmarks.decoding.suite import finish, make_tasks
from benchmarks.measure.timing import limited_seconds, product_rate
from benchmarks.reports.page import write_report
from benchmarks.runs.results import check_results
from benchmarks.runs.runner import check_graph
from benchmarks.runs.tasks import run_task
from benchmarks.settings import Settings
from benchmarks.suite import load_suite
from simulators.world import World
from tests.benchmarks.suites.test_decoding_load import LITTLE as LOADED
from tests.benchmarks.suites.test_decoding_load import Busy, DirectService
from tests.benchmarks.suites.test_decoding_parts import LITTLE as PARTS

LITTLE = replace(PARTS, load=LOADED.load, warm_start=PRESETS["smoke"].warm_start)


def _settings(out: Path, sizes: DecodingPreset = LITTLE, **changes: object) -> Settings:
    asked = {
        "suite": "decoding",
        "preset": "smoke",
        "methods": METHODS,
        "seeds": (3, 4),
        "world": "tiny",
        "sizes": sizes,
        "out": out,
    }
    return Settings(**(asked | changes))


def test_the_suite_is_there() -> None:
    suite = load_suite("decoding")
    assert suite.methods == METHODS
    assert set(suite.presets) == {"smoke", "quick", "paper"}


def test_tasks_run_one_after_the_other(tmp_path: Path) -> None:
    tasks = make_tasks(_settings(tmp_path, PRESETS["paper"]))
    check_graph(tasks)
    assert [task.needs for task in tasks] == [(), *((task.name,) for task in tasks[:-1])]
    named = [task.name for task in tasks]
    assert named[:2] == ["world, seed 3", "policy"]  # all rounds share the first one's
    assert all(task.kwargs.get("world_seed", 3) == 3 for task in tasks)
    assert {f"{m}, seed {s}" for m in METHODS if m != "catalogues" for s in (3, 4)} < set(named)
    assert {"10000000 ads, seed 3", "10000000 ads, seed 4", "100000000 ads, seed 3"} < set(named)
    assert "100000000 ads, seed 4" not in named


def test_methods_choose_parts(tmp_path: Path) -> None:
    def named(*methods: str) -> list[str]:
        return [task.name for task in make_tasks(_settings(tmp_path, methods=methods, seeds=(0,)))]

    assert named("peers", "decoders") == ["peers, seed 0", "decoders, seed 0"]
    assert named("catalogues") == ["300 ads, seed 0"]
    assert named("precision") == ["world, seed 0", "policy", "precision, seed 0"]


def test_presets_grow() -> None:
    smoke, quick, paper = (PRESETS[name] for name in ("smoke", "quick", "paper"))
    assert max(size.num_ads for size in quick.catalogues.sizes) == 1_000_000
    assert max(size.num_ads for size in paper.catalogues.sizes) == 10_000_000
    assert (quick.peers.batches, paper.peers.batches) == ((1, 8, 32), (1, 8, 32, 128))
    assert (smoke.load.soak_s, paper.load.soak_s) == (0, 600)
    assert (max(paper.load.loads), min(paper.load.loads)) == (1.5, 0.1)
    for preset in PRESETS.values():
        own = preset.widths
        assert own.growing[-1] == own.flat
        assert own.narrow >= own.num_candidates
        assert preset.load.min_width >= preset.load.num_candidates


def test_a_whole_run_makes_a_report(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogues, "in_fresh_process", lambda call, **kwargs: call(**kwargs))
    monkeypatch.setattr(peers, "product_rate", lambda *shape: 50.0)
    monkeypatch.setattr(load.LoadBench, "capacity_per_s", lambda bench: 100.0)
    monkeypatch.setattr(load, "open_service", lambda *given: (DirectService(*given), Busy))
    run = _settings(tmp_path, seeds=(0,))
    (tmp_path / "checkpoints").mkdir()
    tables = []
    for task in make_tasks(run):
        ending = run_task(task, tmp_path / "log.jsonl")
        assert ending.error is None, ending.details
        assert all(file.is_file() for file in task.files)
        tables.append(pd.read_parquet(task.output))
    results = check_results(pd.concat(tables), "rows")
    assert "peak_mib" not in set(results["metric"])
    report = finish(run, results)
    page = write_report(tmp_path, report, run.to_json(), {}).read_text()
    for title in ("Targets", "Catalogues", "Widths", "Decoders", "Precision", "Under load"):
        assert title in page
    assert "interquartile mean" not in page
    assert "a beam" in report.answer or "flat beam" in report.answer
    observed = pd.read_csv(tmp_path / "observed.csv")
    assert set(observed["method"]) >= {"load"}
    assert (tmp_path / "figures" / "widths.svg").is_file()
    assert (tmp_path / "figures" / "load.svg").is_file()


def test_repeats_take_turns_and_end() -> None:
    order: list[str] = []

    def run(name: str, seconds: float) -> float:
        order.append(name)
        return seconds

    runs = {"a": lambda: run("a", 1.0), "b": lambda: run("b", 2.0)}
    assert limited_seconds(runs, 3, 60.0) == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert "".join(order) == "ab" * 4  # the first round warms up
    assert limited_seconds(runs, 3, -1.0) == {"a": [1.0], "b": [2.0]}


def test_the_rate_of_products_counts_their_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "benchmarks.measure.timing.median_seconds", lambda runs: dict.fromkeys(runs, 0.5)
    )
    assert product_rate(1_000, 100, 10) == pytest.approx(2 * 1_000 * 100 * 10 / 0.5 / 1e9)
