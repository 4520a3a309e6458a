"""What the environment suite says of rates: verdicts, sentences, and nothing where none is."""

from dataclasses import replace

import pandas as pd

from benchmarks.environment.pieces import PIECES
from benchmarks.environment.presets import EnvironmentPreset
from benchmarks.environment.reading import sentences
from benchmarks.environment.report import make_report, targets_table, verdict
from benchmarks.environment.values import best_threads
from benchmarks.environment.worlds import CatalogueSize
from benchmarks.runs.results import empty_results, tidy
from simulators.make import load_world


def _rows(method: str, metrics: dict[str, float], seed: int = 0, **at: str | int) -> pd.DataFrame:
    return tidy("environment", method, seed, metrics, step=0, split="train", **at)


def _rates(*values: float, name: str = "choices_per_s") -> dict[str, float]:
    return dict(zip((name, f"slowest_{name}", f"fastest_{name}"), values, strict=True))


def test_verdicts_are_computed() -> None:
    assert verdict(None, 20.0) == "not measured"
    assert verdict(20.0, 20.0) == "met"
    assert verdict(150_000.0, 200_000.0) == "missed by 25.0 %"
    played = {"mode": "rankers", "threads": 2}
    rows = []
    for seed, rate in ((0, 150_000.0), (1, 130_000.0)):
        vector = _rates(rate, rate - 10_000, rate + 10_000)
        rows.append(_rows("vector", vector, seed, batch=1_024, **played))
        rows.append(_rows("gymnasium", _rates(6_000, 5_000, 7_000), seed, batch=1, **played))
    table = targets_table(pd.concat(rows), EnvironmentPreset())
    vector, over_sync, single = table.rows
    assert vector[1:] == [
        "\N{EN DASH}",
        "140,000 [120,000, 160,000]",
        "200,000",
        "missed by 30.0 %, with 2 threads",
    ]
    assert over_sync[-1] == "not measured"
    assert single[-1] == "met, with 2 threads"


def test_sentences_are_computed() -> None:
    sizes = replace(
        EnvironmentPreset(),
        catalogues=(
            CatalogueSize(num_ads=1_000, num_codes=16),
            CatalogueSize(num_ads=100_000, num_codes=64),
        ),
    )
    pieces = dict.fromkeys(PIECES, 1.0)
    grown = pieces | {"eligible": 4.0, "restrict": 2.0}  # 3 and 1 of 4 ms more
    rows = [
        _rows("vector", {"choices_per_s": rate}, mode=mode, threads=threads, batch=batch)
        for mode, threads, batch, rate in (
            ("rankers", 2, 64, 50_000.0),
            ("rankers", 1, 64, 40_000.0),
            ("free", 2, 64, 100_000.0),
            ("rankers", 2, 1, 500.0),
        )
    ]
    for num_ads, seconds, taken in ((1_000, 1e-6, pieces), (100_000, 1e-5, grown)):
        rows.append(_rows("vector", {"choice_s": seconds}, num_ads=num_ads, batch=64))
        rows += [
            _rows("vector", {"part_ms": ms}, num_ads=num_ads, part=name)
            for name, ms in taken.items()
        ]
    for threads, rate in ((1, 40.0), (2, 50.0)):
        rows.append(_rows("machine", {"matrix_gflop_per_s": rate}, threads=threads))
    text = " ".join(sentences(pd.concat(rows), ("vector",), sizes))
    assert "1.25 times the speed with 2 threads, so other work kept the cores busy" in text
    assert (
        "with 2 threads, B = 64 is the fastest of those measured, 50,000 choices per second" in text
    )
    assert "100 times B = 1" in text
    assert "1.25 at B = 64" in text  # second thread: 50 over 40
    assert "take 50 % at B = 64" in text  # rankers: 1 - 50 / 100
    assert "100 times the ads (1,000 to 100,000)" in text
    assert "takes 10 times as long: N to the power 0.50" in text
    assert "eligible ads (75 %) and code tree (25 %)" in text


def test_best_threads_are_those_of_the_largest_batch_up_to_the_target() -> None:
    rates = {64: (3.0, 9.0), 1_024: (6.0, 5.0), 8_192: (1.0, 9.0)}
    rows = [
        _rows("vector", {"choices_per_s": rate}, mode="rankers", threads=threads, batch=batch)
        for batch, of_batch in rates.items()
        for threads, rate in enumerate(of_batch, start=1)
    ]
    assert best_threads(pd.concat(rows), (1, 2)) == 1
    assert best_threads(empty_results(), (1, 2)) == 2


def test_report_without_rows_says_so() -> None:
    info = load_world("tiny").info
    empty = pd.DataFrame(columns=["interface", "num_ads", "batch", "what", "mib"])
    machine = _rows("machine", {"matrix_gflop_per_s": 50.0}, threads=1)
    sizes = EnvironmentPreset(threads=(1,))
    report = make_report(machine, empty, methods=("day",), info=info, sizes=sizes)
    assert [row[-1] for row in report.tables[0].rows] == ["not measured"] * 3
    assert "50 GFLOP/s with 1 thread" in report.lead
