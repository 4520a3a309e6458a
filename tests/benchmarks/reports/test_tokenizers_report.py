"""The tokenizers' report: tables and sentences worked out by hand."""

from pathlib import Path

import pandas as pd
import pytest

from benchmarks.reports.blocks import Bullets, Paragraph, Table
from benchmarks.reports.statistics import Interval
from benchmarks.settings import Settings
from benchmarks.tokenizers.presets import TokenizersPreset
from benchmarks.tokenizers.report import (
    collision_quotient,
    entropy_table,
    expectations,
    main_table,
    make_report,
    speed_blocks,
    split_table,
    tuning_table,
)
from tests.benchmarks.reports.frames import frame, rows_of

METHODS = ("rq_vae", "rq_kmeans", "rq_kmeans_plus", "ua_sid")
GRADES = (
    ("collision_rate", 0), ("code_usage", 1), ("code_usage", 2), ("code_usage", 3),
    ("path_similarity", 0), ("reconstruction_error", 0),
)  # fmt: skip


def grades(**changed: tuple[float, float, float]) -> pd.DataFrame:
    """Return collision rate and path similarity of three tokenizers, three seeds each."""
    found = {
        "collision_vae": (4.0, 5.0, 6.0),
        "collision_kmeans": (2.0, 3.0, 4.0),
        "collision_plus": (1.0, 2.0, 3.0),
        "path_vae": (1.0, 2.0, 3.0),
        "path_kmeans": (5.0, 6.0, 7.0),
        "path_plus": (4.0, 6.0, 8.0),
        **changed,
    }
    names = {"collision": "collision_rate", "path": "path_similarity"}
    methods = {"vae": "rq_vae", "kmeans": "rq_kmeans", "plus": "rq_kmeans_plus"}
    values = {}
    for key, seeds in found.items():
        metric, method = key.split("_")
        values[methods[method], names[metric]] = seeds
    usage = {("rq_kmeans_plus", "code_usage"): (0.25, 0.5, 0.75)}
    of_world = {"split": "all", "catalogue": "world"}
    return pd.concat([frame(values, **of_world), frame(usage, level=1, **of_world)])


def test_the_papers_order_is_told_from_the_differences() -> None:
    said = expectations(grades(), "world", METHODS)
    assert said == [
        "The paper finds fewer collisions with `rq_kmeans_plus` than with `rq_kmeans`; here "
        "(world) that holds: -1.0000 [-1.0000, -1.0000].",
        "The paper finds a higher path similarity with `rq_kmeans_plus` than with `rq_kmeans`; "
        "here (world) that is not clear: +0.0000 [-1.0000, +1.0000].",
        "The paper finds fewer collisions with `rq_kmeans_plus` than with `rq_vae`; here (world) "
        "that holds: -3.0000 [-3.0000, -3.0000].",
        "The paper finds a higher path similarity with `rq_kmeans_plus` than with `rq_vae`; here "
        "(world) that holds: +4.0000 [+3.0000, +5.0000].",
        "On world 4 comparisons were made; at 3 seeds no p-value corrected for their number on "
        "each measure (Holm) can fall below .05, so verdicts rest on uncorrected intervals.",
        "`rq_kmeans_plus` uses 50.0% of the first level's codes (world).",
    ]


def test_the_reverse_of_the_papers_order_is_told_too() -> None:
    said = expectations(
        grades(collision_plus=(7.0, 8.0, 9.0), path_plus=(0.0, 1.0, 2.0)), "world", METHODS
    )
    reverse = "does not hold: the reverse is true"
    assert [reverse in line for line in said] == [True, True, True, True, False, False]
    assert "+5.0000 [+5.0000, +5.0000]" in said[0]
    assert "-1.0000 [-1.0000, -1.0000]" in said[3]
    assert expectations(grades(), "world", ("rq_vae",)) == []
    two = grades().query("seed < 2")
    assert "can't be told from so few seeds" in expectations(two, "world", METHODS)[0]


def test_the_papers_order_needs_corrected_p_values_where_they_can_be_low() -> None:
    """Eight seeds; against `rq_vae` all differences are 1, against `rq_kmeans` one has a sign more.

    Two of 2^8 sign flips are as extreme as eight equal differences: p = .0078, times 2. Of seven
    -1 and one +.5 the sum is -6.5; as extreme are all signs equal (2), and either that one flipped
    (2): p = 4 / 256, so Holm's second factor is 1. Below .05 both.
    With one +2 in place of +.5 the sum is -5; as extreme are that one with any sign and at most one
    or none of the seven: p = .0703, and the interval alone would have said that it holds.
    """

    def said(last: float) -> list[str]:
        values = {
            ("rq_kmeans_plus", "collision_rate"): (5.0,) * 8,
            ("rq_vae", "collision_rate"): (6.0,) * 8,
            ("rq_kmeans", "collision_rate"): (*(6.0,) * 7, 5.0 - last),
            ("rq_kmeans_plus", "path_similarity"): (1.0,) * 8,
        }
        found = pd.concat(
            [
                frame(values, split="all", catalogue="world"),
                frame({("rq_kmeans_plus", "code_usage"): 1.0}, split="all", catalogue="world",
                      level=1),
            ]
        )  # fmt: skip
        return expectations(found, "world", METHODS)

    assert "`rq_kmeans`; here (world) that holds" in said(0.5)[0]
    assert "`rq_vae`; here (world) that holds" in said(0.5)[1]
    assert said(0.5)[2] == (
        "On world 2 comparisons were made; verdicts hold after Holm's correction for their number."
    )
    unsure = said(2.0)
    assert "`rq_kmeans`; here (world) that is not clear: -1.0000 [-1.0000, -0." in unsure[0]
    assert "`rq_vae`; here (world) that holds" in unsure[1]


def test_the_quotient_says_how_many_times_fewer() -> None:
    values = {
        ("rq_kmeans", "collision_rate"): (8.0, 8.0, 12.0),
        ("ua_sid", "collision_rate"): (4.0, 2.0, 2.0),  # quotients 2, 4 and 6
    }
    said = collision_quotient(frame(values, split="all", catalogue="world"), "world")
    assert said is not None
    assert "`ua_sid` has 4.0 [2.0, 6.0] times fewer collisions than `rq_kmeans` (world)" in said
    values["ua_sid", "collision_rate"] = (0.0, 2.0, 2.0)
    assert collision_quotient(frame(values, split="all", catalogue="world"), "world") is None
    del values["ua_sid", "collision_rate"]
    assert collision_quotient(frame(values, split="all", catalogue="world"), "world") is None


def table_frame(split: str, offset: float) -> pd.DataFrame:
    levels: dict[int, dict[tuple[str, str], float]] = {0: {}, 1: {}, 2: {}, 3: {}}
    for start, method in ((10, "rq_vae"), (20, "rq_kmeans")):
        for number, (metric, level) in enumerate(GRADES):
            levels[level][method, metric] = start + number + offset
        if split == "all":
            facts = {"num_items": 1_000, "twins": 0.25, "variance": 2.5, "num_paths": 4_096}
            levels[0] |= {(method, name): value for name, value in facts.items()}
            levels[0][method, "fit_s"] = start + 4
            for level in (1, 2, 3):
                levels[level][method, "entropy"] = start + level
    return pd.concat(
        frame(values, split=split, catalogue="world", level=level)
        for level, values in levels.items()
    )


def test_every_grade_stands_in_its_own_column() -> None:
    results = pd.concat(
        [table_frame("all", 0), table_frame("train", 100), table_frame("heldout", 200)]
    )
    methods = ("rq_vae", "rq_kmeans")
    names = ["collision rate", "usage 1", "usage 2", "usage 3"]
    names += ["path similarity", "reconstruction error"]
    table = main_table(results, "world", methods, None)
    assert rows_of(table) == {
        "rq_vae": dict(zip(names, range(10, 16), strict=True)),
        "rq_kmeans": dict(zip(names, range(20, 26), strict=True)),
    }
    assert table.note.startswith("1,000 items, 25.0% of them")
    assert "4,096 paths" in table.note
    assert "error would be 2.5 with one code for all" in table.note
    assert main_table(results, "world", methods, None).title.endswith("synthetic world's items")
    assert main_table(results, "file", methods, Path("own.npy")).title.endswith("own.npy")
    parts = rows_of(split_table(results, "world", methods))
    assert list(parts)[:2] == ["rq_vae, train", "rq_vae, heldout"]
    assert {row: cells["collision rate"] for row, cells in parts.items()} == {
        "rq_vae, train": 110,
        "rq_vae, heldout": 210,
        "rq_kmeans, train": 120,
        "rq_kmeans, heldout": 220,
    }
    assert rows_of(entropy_table(results, "world", methods))["rq_kmeans"] == {
        "level 1 (nats)": 21,
        "level 2 (nats)": 22,
        "level 3 (nats)": 23,
        "fit (s, one thread)": 24,
    }


def speed() -> pd.DataFrame:
    stream = {"num_items": 9_000, "encoded_per_s": 3_000, "peak_mib": 12}
    found = [
        frame({("machine", "rq_kmeans_fit_s"): 7}, num_seeds=1),
        frame({("machine", k): v for k, v in stream.items()}, num_seeds=1, part="stream"),
    ]
    for threads in (1, 2):
        rates = {"encoded": 1_000, "share_of_matrix": 0.25, "matrix_gflop": 10}
        values = {("machine", f"{name}_per_s"): rate * threads for name, rate in rates.items()}
        found.append(frame(values, num_seeds=1, threads=threads))
    return pd.concat(found)


def test_speed_is_told_per_thread() -> None:
    table, stream = speed_blocks(speed(), TokenizersPreset(speed_items=5_000))
    assert isinstance(table, Table)
    assert table.rows == [["1", "1,000", "10", "25%"], ["2", "2,000", "20", "50%"]]
    assert table.note.startswith("Fitting 5,000 items took 7.0 s")
    assert isinstance(stream, Paragraph)
    assert stream.text == (
        "9,000 items in a Parquet file were encoded at 3,000 items per second, with 12 MiB of "
        "memory at most beside what the process had."
    )


def test_the_tuning_table_gives_defaults_and_the_lowest(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(
        '{"trials": [{"score": 3.0}, {"score": null}, {"score": 1.0}], "chosen": {"rate": 2}}'
    )
    table = tuning_table({("rq_vae", "world"): path, ("ua_sid", "world"): None})
    assert table is not None
    assert table.rows == [["rq_vae@world", 3, 3.0, 1.0, "rate = 2"]]
    assert tuning_table({("ua_sid", "world"): None}) is None


def test_the_report_says_the_sentences_of_every_catalogue(tmp_path: Path) -> None:
    settings = Settings(
        suite="tokenizers", preset="smoke", methods=("rq_kmeans", "rq_kmeans_plus"),
        seeds=(0, 1, 2),
        world="small", reward=(), sizes=TokenizersPreset(), out=tmp_path,
    )  # fmt: skip
    report = make_report(pd.concat([grades(), speed()]), settings, ("world",), {})
    first = report.sections[0].blocks[0]
    assert isinstance(first, Bullets)
    assert first.items == expectations(grades(), "world", settings.methods)
    assert "on: small. 3 seeds" in report.lead
    cell = report.tables[0].rows[0][1]
    assert isinstance(cell, Interval)
    assert (cell.value, cell.low, cell.high) == pytest.approx((3.0, 2.0, 4.0))
