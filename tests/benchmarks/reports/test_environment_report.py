"""The environment report: every table, and sentences both ways, worked out by hand."""

from functools import cache
from types import SimpleNamespace

import pandas as pd
import pytest

from benchmarks.environment.figure import speed_figure
from benchmarks.environment.pieces import EPISODE, INPUTS, PIECES
from benchmarks.environment.presets import EnvironmentPreset
from benchmarks.environment.reading import sentences
from benchmarks.environment.report import (
    catalogue_tables,
    make_report,
    memory_table,
    pieces_table,
    speed_table,
    sync_table,
    targets_table,
)
from benchmarks.environment.worlds import CatalogueSize
from benchmarks.reports.blocks import Bullets, Table
from tests.benchmarks.reports.frames import frame, rows_of

INFO = SimpleNamespace(name="tiny", source="by hand", num_codes=4, num_levels=3)
SIZES = EnvironmentPreset(
    batches=(1, 1_024),
    max_cells=1_024_000,
    catalogues=(
        CatalogueSize(num_ads=1_000, num_codes=16),
        CatalogueSize(num_ads=100_000, num_codes=64),
    ),
)
METHODS = ("vector", "sync_vector", "torchrl")
NO_MEMORY = pd.DataFrame(columns=["interface", "num_ads", "batch", "what", "mib"])


def one(metric: str, value: float, method: str = "vector", **at: str | int) -> pd.DataFrame:
    return frame({(method, metric): value}, split="train", num_seeds=1, **at)


def played(
    method: str, batch: int, threads: int, rate: float, mode: str = "rankers"
) -> pd.DataFrame:
    """Return a rate whose slowest repeat is 10 below and whose fastest is 20 above."""
    named = {"choices_per_s": rate, "slowest_choices_per_s": rate - 10}
    named |= {"fastest_choices_per_s": rate + 20, "requests_per_s": rate / 4, "draw_s": 2e-6}
    values = {(method, name): value for name, value in named.items()}
    return frame(values, split="train", num_seeds=1, mode=mode, threads=threads, batch=batch)


@cache
def results(two: float = 250_000.0, cores: float = 80.0, large: float = 8e-6) -> pd.DataFrame:
    """Return rates of three interfaces, pieces of 1 to 8 ms and two catalogues.

    Args:
        two: Choices per second of the vector environment at B = 1,024 with two threads.
        cores: Matrix products with two threads, GFLOP/s, against 50 with one.
        large: Seconds per choice on the large catalogue at B = 1, against 2e-6 on the small one.
    """
    pieces = dict(zip(PIECES, range(1, 9), strict=True)) | {INPUTS: 2, EPISODE: 40}
    rows = [
        played("vector", 1, 1, 1_000.0), played("vector", 1, 2, 500.0),
        played("vector", 1_024, 1, 100_000.0), played("vector", 1_024, 2, two),
        played("vector", 1_024, 2, 1_000_000.0, "free"), played("torchrl", 1_024, 2, 50_000.0),
        played("sync_vector", 1_024, 1, 5_000.0), played("sync_vector", 1_024, 2, 10_000.0),
        one("matrix_gflop_per_s", 50.0, "machine", threads=1),
        one("matrix_gflop_per_s", cores, "machine", threads=2),
    ]  # fmt: skip
    for threads in (1, 2):
        at = {"mode": "rankers", "threads": threads, "batch": 1_024}
        for name, value in (("", 25.0), ("slowest_", 24.0), ("fastest_", 28.0)):
            rows.append(one(f"{name}native_over_sync_choices_per_s", value, "sync_vector", **at))
        rows.append(one("native_choices_per_s", 125_000.0 * threads, "sync_vector", **at))
        rows += [
            one("part_ms", ms * threads, part=part, threads=threads, batch=1_024)
            for part, ms in pieces.items()
        ]
    for num_ads, seconds, grown in ((1_000, 2e-6, 1.0), (100_000, large, 3.0)):
        own = {"world_s": 1, "requests_s": 2, "trie_s": 3}
        rows += [one(name, value * grown, num_ads=num_ads) for name, value in own.items()]
        for name, times in (("", 1.0), ("fastest_", 0.5), ("slowest_", 2.0)):
            rows.append(one(f"{name}choice_s", seconds * times, num_ads=num_ads, batch=1))
        for batch, make in ((1, 100.0), (1_024, 4.0)):  # the first one also imports
            rows.append(one("make_s", make * grown, num_ads=num_ads, batch=batch))
        more = {"eligible": 6.0, "copies": 2.0} if num_ads > 1_000 else {}
        parts = dict.fromkeys(PIECES, 1.0) | {EPISODE: 8.0}
        for part, ms in parts.items():
            rows.append(one("part_ms", ms + more.get(part, 0.0), num_ads=num_ads, part=part))
    return pd.concat(rows)


def test_targets_are_met_or_missed() -> None:
    vector, over_sync, single = targets_table(results(), SIZES).rows
    assert vector == [
        "vector, B = 1,024: choices per second",
        "100,000 [99,990, 100,020]",
        "250,000 [249,990, 250,020]",
        "200,000",
        "met, with 2 threads",
    ]
    assert over_sync[1:] == ["25.0 [24.0, 28.0]"] * 2 + ["20", "met, with 1 thread"]
    assert single[1:] == ["\N{EN DASH}", "\N{EN DASH}", "5,000", "not measured"]
    slower = targets_table(results(two=150_000.0), SIZES).rows[0]
    assert slower[-1] == "missed by 25.0 %, with 2 threads"


def test_rates_of_every_interface_and_batch() -> None:
    rows = speed_table(results(), METHODS, SIZES).rows
    plain = [[getattr(cell, "value", cell) for cell in row] for row in rows]
    # Interface, B, with rankers on 1 and 2 threads, without on 1 and 2; requests are a quarter.
    assert plain == [
        ["`vector`", 1, 1_000, 500, None, None, 125, pytest.approx(2.0)],
        ["`vector`", 1_024, 100_000, 250_000, None, 1_000_000, 62_500, pytest.approx(2.0)],
        ["`sync_vector`", 1_024, 5_000, 10_000, None, None, 2_500, pytest.approx(2.0)],
        ["`torchrl`", 1_024, None, 50_000, None, None, 12_500, pytest.approx(2.0)],
    ]
    table = sync_table(results(), SIZES)
    assert table is not None
    assert table.rows == [
        [1_024, 1, 125_000, 5_000, "25.0 [24.0, 28.0]"],
        [1_024, 2, 250_000, 10_000, "25.0 [24.0, 28.0]"],
    ]
    found = results()
    assert sync_table(found[found["method"] != "sync_vector"], SIZES) is None


def test_pieces_and_their_shares_of_the_episode() -> None:
    table = pieces_table(results(), SIZES)
    assert table is not None
    assert table.title == "Where a batch of 1,024 requests spends its time"
    rows = rows_of(table)
    # Piece k takes k of 40 ms with one thread and 2 k of 80 with two.
    assert list(rows["rankers"].values())[1:] == [5, 12.5, 10, 12.5]
    assert list(rows["of which inputs"].values())[1:] == [2, 5, 4, 5]
    assert list(rows["a whole episode"].values())[1:] == [40, 100, 80, 100]
    assert list(rows)[4:6] == ["rankers", "of which inputs"]
    found = results()
    assert pieces_table(found[found["threads"] != 2], SIZES) is None


def test_catalogues_and_memory() -> None:
    memory = pd.DataFrame(
        [
            ("vector", -1, 64, "world", 1.0), ("vector", -1, 64, "make", 2.0),
            ("vector", -1, 64, "run", 3.0), ("vector", 1_000, 0, "world", 4.0),
            ("vector", 1_000, 1, "run", 5.0),
        ],
        columns=list(NO_MEMORY.columns),
    )  # fmt: skip
    times, pieces, making = catalogue_tables(results(), memory, SIZES)
    # Seconds per choice in microseconds; B = 1,024 was not measured.
    assert [list(row.values()) for row in rows_of(times).values()] == [
        [16, pytest.approx(2.0), None],
        [64, pytest.approx(8.0), None],
    ]
    found = rows_of(pieces)
    assert (found["1000"]["eligible ads"], found["100000"]["eligible ads"]) == (1, 7)
    assert (found["1000"]["episode"], found["100000"]["copies"]) == (8, 3)
    assert [list(row.values()) for row in rows_of(making).values()] == [
        [1, 2, 3, 4, 4, 5, None],
        [3, 6, 9, 12, None, None, None],
    ]
    used = memory_table(memory, METHODS)
    assert used is not None
    assert used.rows == [["`vector`", 64, 1.0, 2.0, 3.0]]
    assert memory_table(NO_MEMORY, METHODS) is None


def test_sentences_one_way() -> None:
    assert sentences(results(), METHODS, SIZES) == [
        "Machine: matrix products run at 1.60 times the speed with 2 threads.",
        "Batching: with 2 threads, B = 1,024 is the fastest of those measured, 250,000 choices per "
        "second, 500 times B = 1.",
        "Threads: 2 instead of 1 multiply the vector environment's speed by 0.50 at B = 1, 2.50 at "
        "B = 1,024.",
        "Rankers: of the vector environment's time they and their inputs take 75 % at B = 1,024 "
        "(less time without them, over the time with them).",
        "Where time goes: an episode of 1,024 requests takes 80.0 ms. The largest pieces are infos "
        "20 %, copies 18 %, other rules 15 %; the rankers' inputs alone are 5 %.",
        "Interfaces: of the vector environment's speed, TorchRL's `rand_action` and `step` 0.20 at "
        "B = 1,024, `SyncVectorEnv` 0.04 at B = 1,024.",
        # 4 times as long with 100 times the ads: log 4 / log 100 = 0.30; 6 and 2 of 8 ms more.
        "Catalogue: with 100 times the ads (1,000 to 100,000) a choice at B = 1 takes 4 times as "
        "long: N to the power 0.30, over the last step 0.30 (1 would be in proportion). Most of "
        "the added time goes into eligible ads (75 %) and copies (25 %).",
    ]


def test_sentences_the_other_way_and_undecided() -> None:
    said = sentences(results(two=400.0, cores=60.0, large=2.02e-6), METHODS, SIZES)
    assert said[0].startswith(
        "Machine: matrix products run at 1.20 times the speed with 2 threads, so other work kept "
        "the cores busy"
    )
    # One thread is the better of the two now, so the rest is told with one.
    assert said[1].startswith("Batching: with 1 thread, B = 1,024 is the fastest")
    assert "a choice at B = 1 takes as long: N to the power 0.00" in said[-1]
    found = results()
    small = found[~((found["method"] == "vector") & (found["batch"] == 1_024))]
    alone = pd.concat([small, played("vector", 64, 2, 250.0), played("vector", 64, 1, 50.0)])
    batching = sentences(alone, METHODS, SIZES)[1]
    assert batching == (
        "Batching: with 2 threads, B = 1 is the fastest of those measured, 500 choices per second, "
        "1 times B = 1; B = 64 reaches 50 % of it."
    )
    assert sentences(found[:0], METHODS, SIZES) == []


def test_the_figure_draws_rates_with_their_repeats() -> None:
    (axes,) = speed_figure(results(), METHODS, 2).axes
    lines = {c.get_label(): c.lines[0] for c in axes.containers}
    assert list(lines) == ["vector", "sync_vector", "torchrl", "vector, no rankers"]
    assert list(lines["vector"].get_xdata()) == [1, 1_024]
    assert list(lines["vector"].get_ydata()) == [500, 250_000]
    assert list(lines["vector, no rankers"].get_ydata()) == [1_000_000]
    assert [text.get_text() for text in axes.texts] == ["target 200,000"]


def test_the_report_puts_it_together() -> None:
    made = make_report(results(), NO_MEMORY, methods=METHODS, info=INFO, sizes=SIZES)
    assert made.lead == (
        "3 interfaces on world `tiny` (by hand, V = 4, L = 3); 1 rounds. The machine multiplies "
        "matrices at 50 GFLOP/s with 1 thread, 80 GFLOP/s with 2 threads."
    )
    assert [section.title for section in made.sections] == [
        "What the numbers say", "Speed by interface", "Where time goes",
        "Scaling with the catalogue",
    ]  # fmt: skip
    missing = made.sections[-1].blocks[-1]
    assert isinstance(missing, Bullets)
    assert missing.items == [
        "Left out, B = 1,024 with 1,000 ads: too little free memory.",
        "Left out, B = 1,024 with 100,000 ads: B * N = 1.02e+08 is above the cap, 1.02e+06.",
    ]
    assert isinstance(made.sections[-1].blocks[0], Table)
