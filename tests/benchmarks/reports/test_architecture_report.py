"""The architecture report: who is compared with whom, and cells worked out by hand."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from benchmarks.architecture.presets import ArchitecturePreset
from benchmarks.architecture.report import (
    cost_table,
    main_table,
    make_report,
    part_differences,
    speed_blocks,
    statistics_table,
    still_learning,
)
from benchmarks.reports.blocks import Bullets, Table
from benchmarks.runs.results import Conditions
from benchmarks.settings import Settings
from tests.benchmarks.reports.frames import frame, rows_of

METRIC = "hitr_100"
LEVELS = {
    "sasrec": 60, "base": 10, "hybrid_attention": 11, "token_aware_ffn": 8, "thinking": 20,
    "refining": 17, "mtp": 10, "full": 50, "control_token_aware_ffn": 3, "control_refining": 18,
    "control_mtp": 6, "control_full": 49, "deep": 30, "lazy_ar": 26,
}  # fmt: skip


def hits(**changed: tuple[float, float, float]) -> pd.DataFrame:
    return frame({(row, METRIC): changed.get(row, level) for row, level in LEVELS.items()})


def test_every_part_has_its_own_baseline() -> None:
    found = part_differences(hits(), list(LEVELS), METRIC)
    assert {(d.method, d.baseline): (d.interval.value, d.verdict) for d in found} == {
        ("hybrid_attention", "base"): (1, "improves"),
        ("token_aware_ffn", "base"): (-2, "lowers"),
        ("thinking", "base"): (10, "improves"),
        ("mtp", "base"): (0, "no clear difference"),
        ("full", "base"): (40, "improves"),
        ("refining", "thinking"): (-3, "lowers"),
        ("token_aware_ffn", "control_token_aware_ffn"): (5, "improves"),
        ("refining", "control_refining"): (-1, "lowers"),
        ("mtp", "control_mtp"): (4, "improves"),
        ("full", "control_full"): (1, "improves"),
        ("full", "sasrec"): (-10, "lowers"),
        ("lazy_ar", "deep"): (-4, "lowers"),
    }


def test_verdicts_follow_the_seeds() -> None:
    undecided = part_differences(hits(hybrid_attention=(9, 10, 14)), list(LEVELS), METRIC)
    assert undecided[0].verdict == "no clear difference"
    assert undecided[0].interval.value == 1  # (-1 + 0 + 4) / 3
    worse = part_differences(hits(full=(7, 8, 9)), ["base", "full"], METRIC)
    assert [(d.method, d.baseline, d.verdict) for d in worse] == [
        ("full", "base", "lowers"),
        ("full", "control_full", "lowers"),
    ]


def test_ranks_and_costs_stand_in_their_own_columns() -> None:
    metrics = [METRIC, "recall_10", "ndcg_10", "num_requests", "num_ads", "unreachable"]
    costs = ["num_parameters", "num_inner_parameters", "training_gflop", "train_s"]
    costs += ["examples_per_s", "ranked_per_s", "num_steps", "best_step", "first_loss", "last_loss"]
    results = frame({("base", name): i for i, name in enumerate([*metrics, *costs], 200)})
    table = main_table(results, ["base", "full"], 100)
    assert rows_of(table) == {
        "base": {"HitR@100": 200, "Recall@10": 201, "NDCG@10": 202, "unreachable": 205},
        "full": dict.fromkeys(table.columns[1:]),
    }
    assert table.note.startswith("203 held-out requests")
    assert "`unreachable` is the share of these requests whose ad the row can't list" in table.note
    assert "a row that decodes paths finds one of them" in table.note
    assert "can't tell" not in table.note
    few = frame({("base", "num_requests"): 3, ("base", "num_ads"): 100})
    assert "There are 100 ads: HitR@100 can't tell" in main_table(few, ["base"], 100).note
    table = cost_table(results, ["base"])
    assert list(table.columns[1:]) == [
        "parameters", "without tables", "training GFLOP", "training s", "examples / s",
        "ranked requests / s", "steps", "best step", "loss at the start", "at the end",
    ]  # fmt: skip
    assert table.rows == [["base", *range(206, 216)]]


def test_the_page_says_what_rows_are_trained_and_searched_over(tmp_path: Path) -> None:
    settings = Settings(
        suite="architecture", preset="smoke", methods=("sasrec", "base"), seeds=(0, 1, 2),
        world="tiny", protocol="time", sizes=ArchitecturePreset(), out=tmp_path,
    )  # fmt: skip
    info = SimpleNamespace(name="tiny", source="by hand", simulated=(), notes=())
    made = make_report(hits(), settings, info, {})  # type: ignore[arg-type]
    bullets = made.sections[-1].blocks[0]
    assert isinstance(bullets, Bullets)
    said = " ".join(bullets.items)
    for words in (
        "No rival is trained under it: `popularity` counts",
        "`sasrec` and `hstu` learn a softmax over all ads",
        "`onerec` learns one over all codes of a level and `tiger` one over its whole vocabulary",
        "The HHD's rows, which are all others, are trained under eligibility",
        "No row is searched under eligibility: every list is drawn from the whole catalogue",
        "`popularity`, `sasrec` and `hstu` score every ad. The others decode",
        "which `popularity`, `sasrec` and `hstu` can",
    ):
        assert words in said
    assert "searched among legal codes" not in said


def test_collapse_is_a_mean_per_row_and_statistic() -> None:
    shares = {("full", "head_1"): (1, 2, 6), ("base", "depth_2"): 5}
    results = pd.concat([frame(shares, part="collapse"), frame({("base", "x"): 9})])
    table = statistics_table(results)
    assert table is not None
    assert table.rows == [["full", "head_1", 3.0], ["base", "depth_2", 5.0]]
    assert statistics_table(frame({("base", "x"): 9})) is None


def test_rows_best_at_their_last_step_are_counted() -> None:
    steps = {("base", "num_steps"): 8, ("base", "best_step"): 8}
    steps |= {("full", "num_steps"): 8, ("full", "best_step"): (8, 8, 4)}
    said = still_learning(frame(steps), ["base", "full", "popularity"])
    assert len(said) == 1
    assert said[0].startswith("1 of 2 trained rows were best at their last step")
    assert still_learning(frame(steps), ["full"]) == []


@pytest.mark.parametrize(
    ("metric", "at"),
    [
        ("matrix_gflop_per_s", {}),
        ("hsd_over_plain_per_s", {"part": "train"}),
        ("inference_ms", {"part": "inference", "depth": 3}),
        ("lazy_ar_per_s", {"part": "decode", "depth": 6}),
    ],
)
def test_speed_gives_one_thread_before_two(metric: str, at: Conditions) -> None:
    found = [frame({("machine", metric): 10.0 * n}, num_seeds=1, threads=n, **at) for n in (1, 2)]
    (table,) = speed_blocks(pd.concat(found), ArchitecturePreset())
    assert isinstance(table, Table)
    assert [[float(str(cell)) for cell in row[1:]] for row in table.rows] == [[10.0, 20.0]]
