"""The rankers' report: who is compared with whom, and cells worked out by hand."""

from functools import cache
from types import SimpleNamespace

import pandas as pd
import pytest

from benchmarks.rankers.report import (
    make_report,
    overall_table,
    regime_table,
    reliability_figure,
)
from benchmarks.reports.blocks import Bullets, Figure, SuiteReport, Table
from benchmarks.reports.reading import reading
from tests.benchmarks.reports.frames import frame, rows_of

INFO = SimpleNamespace(
    name="tiny", source="by hand", simulated=("clicks",), has_truth=True,
    notes=("A note.",), num_days=9, num_log_days=6,
)  # fmt: skip
GRADES = ("auc", "log_loss", "ece", "ratio", "rate", "num_positives", "num_rows")
HEADS = ["AUC", "log-loss", "ECE", "sum(p)/sum(y)", "rate", "positives", "rows"]
REGIME = ("logging", "proxy_argmax", "best", "share")
BOTH = ("ours", "lightgbm")


def card(method: str, task: str, group: str, start: float) -> pd.DataFrame:
    """Return grade k of a card as start + k; the truth's are 50 more."""
    values = {(method, name): start + k for k, name in enumerate(GRADES)}
    values |= {(method, f"{name}_oracle"): start + 50 + k for k, name in enumerate(GRADES[:4])}
    return frame(values, task=task, group=group)


@cache
def results(lightgbm: tuple[float, float, float] = (7.0, 8.0, 9.0)) -> pd.DataFrame:
    """Return cards of two methods; the second's AUC of clicks is given, its share is 1 less."""
    regime = {("ours", f"regime/{name}"): 10 + k for k, name in enumerate(REGIME)}
    regime |= {("lightgbm", f"regime/{name}"): 9 + k for k, name in enumerate(REGIME)}
    regime |= {("ours", "scores_per_s"): 900, ("lightgbm", "scores_per_s"): 800}
    clicks = card("lightgbm", "pctr", "overall", 2)
    clicks.loc[clicks["metric"] == "auc", "value"] = list(lightgbm)
    bins = [
        frame({("ours", "predicted"): p, ("ours", "observed"): o}, task="pctr", bin=number)
        for number, p, o in ((1, (0.1, 0.2, 0.3), (0.2, 0.3, 0.7)), (2, 0.5, 0.25), (3, 0.9, 0.0))
    ]
    return pd.concat(
        [
            card("ours", "pctr", "overall", 1), clicks, card("ours", "pctr", "vertical 10", 3),
            card("ours", "pctr", "vertical 9", 4), card("ours", "pctr", "new ads", 5),
            card("ours", "pcvr", "overall", 6), card("lightgbm", "pcvr", "overall", 6),
            frame(regime), *bins,
        ]
    )  # fmt: skip


def report(found: pd.DataFrame, **info: object) -> SuiteReport:
    known = SimpleNamespace(**(vars(INFO) | info))
    return make_report(found, methods=BOTH, info=known, seeds=(0, 1, 2))


def test_every_grade_stands_in_its_own_column_and_the_truth_below() -> None:
    rows = rows_of(overall_table(results(), BOTH))
    assert list(rows) == [
        "pctr, ours", "pctr, lightgbm", "pctr, truth", "pcvr, ours", "pcvr, lightgbm",
        "pcvr, truth",
    ]  # fmt: skip
    assert rows["pctr, ours"] == dict(zip(HEADS, range(1, 8), strict=True))
    # Rate and counts are the rows' own, whoever is graded.
    assert rows["pctr, truth"] == dict(zip(HEADS, [51, 52, 53, 54, 5, 6, 7], strict=True))
    own = results()
    blind = own[~own["metric"].str.endswith("_oracle")]
    assert "pctr, truth" not in rows_of(overall_table(blind, BOTH))


def test_groups_are_in_the_order_of_their_numbers() -> None:
    clicks = report(results()).sections[0]
    assert clicks.title == "Clicks"
    assert isinstance(clicks.blocks[0], Figure)
    table = clicks.blocks[1]
    assert isinstance(table, Table)
    assert list(rows_of(table)) == ["overall", "vertical 9", "vertical 10", "new ads"]
    row = rows_of(table)["vertical 9"]
    assert list(row.values()) == [4, 5, 6, 7, 8, 9, 10, 54, 56]
    assert list(row)[-2:] == ["AUC of the truth", "ECE of the truth"]


def test_what_optimising_is_worth() -> None:
    table = regime_table(results(), BOTH)
    assert table is not None
    names = ["logging policy", "the rankers' best ad", "truly best ad",
             "share of the possible gain", "scores per second"]  # fmt: skip
    assert rows_of(table) == {
        "ours": dict(zip(names, [10, 11, 12, 13, 900], strict=True)),
        "lightgbm": dict(zip(names, [9, 10, 11, 12, 800], strict=True)),
    }
    found = results()
    speed = found[~found["metric"].str.startswith("regime/")]
    table = regime_table(speed, BOTH)
    assert table is not None
    assert rows_of(table) == {
        "ours": {"scores per second": 900},
        "lightgbm": {"scores per second": 800},
    }


@pytest.mark.parametrize(
    ("auc", "said"),
    [
        ((7.0, 8.0, 9.0), "improved by `lightgbm` (+7 [6, 8])"),
        ((-1.0, 0.0, 0.5), "lowered by `lightgbm` (-1.17 [-2, -0.5])"),
        ((0.0, 1.0, 2.0), "no clear difference for `lightgbm` (+0 [-1, 1])"),
    ],
)
def test_the_others_are_compared_with_the_first(auc: tuple[float, float, float], said: str) -> None:
    clicks, conversions, share, trust = reading(report(results(auc)).differences)
    assert clicks == f"The AUC of pCTR, against `ours`: {said}."
    assert conversions == (
        "The AUC of pCVR, against `ours`: no clear difference for `lightgbm` (+0 [0, 0])."
    )
    assert share == (
        "The share of the possible gain of the rankers' best ad, against `ours`: "
        "lowered by `lightgbm` (-1 [-1, -1])."
    )
    assert "3 comparisons were made" in trust


def test_bins_are_means_over_worlds_and_empty_ones_are_left_out() -> None:
    (axes,) = reliability_figure(results(), "pctr", BOTH).axes
    ours, diagonal = axes.lines
    assert ours.get_label() == "ours"
    assert list(ours.get_xdata()) == pytest.approx([0.2, 0.5])
    assert list(ours.get_ydata()) == pytest.approx([0.4, 0.25])
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == pytest.approx([0.2, 0.5])
    (empty,) = reliability_figure(results(), "pcvr", BOTH).axes
    assert len(empty.lines) == 0


def test_the_lead_and_the_grading_in_words() -> None:
    made = report(results())
    assert made.lead == (
        "ours, lightgbm as reward simulator; 3 seeds. World `tiny` (by hand, with a known truth). "
        "Simulated: clicks. A note."
    )
    facts = made.sections[-1].blocks[0]
    assert isinstance(facts, Bullets)
    assert "graded on the 3 days after the log" in facts.items[0]
    assert (
        "without a known truth). Simulated: nothing."
        in report(results(), has_truth=False, simulated=()).lead
    )
