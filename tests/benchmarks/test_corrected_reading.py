"""Verdicts on several comparisons: corrected where the seeds allow it, and always said."""

import math

import pytest

from benchmarks.reports.reading import Difference, adjust, reading
from benchmarks.reports.statistics import Interval


def difference(
    sign: int = 1,
    *,
    p_value: float = math.nan,
    num_seeds: int = 10,
    higher: bool = True,
    measure: str = "the value",
    baseline: str = "old",
) -> Difference:
    return Difference(
        method="new",
        baseline=baseline,
        measure=measure,
        interval=Interval(0.2 * sign, 0.2 * sign - 0.1, 0.2 * sign + 0.1),
        num_seeds=num_seeds,
        higher_is_better=higher,
        p_value=p_value,
    )


def verdicts(*declared: Difference) -> list[str]:
    return [d.verdict for d in adjust(declared)]


@pytest.mark.parametrize(
    ("sign", "higher", "word", "said"),
    [
        (1, True, "improves", "improved by"),
        (-1, True, "lowers", "lowered by"),
        (1, False, "worsens", "worsened by"),
        (-1, False, "improves", "improved by"),
    ],
)
def test_a_verdict_needs_interval_and_corrected_p_value(sign, higher, word, said):
    def pair(*p_values: float, num_seeds: int = 10) -> list[Difference]:
        return [difference(sign, p_value=p, num_seeds=num_seeds, higher=higher) for p in p_values]

    assert verdicts(*pair(0.01, 0.04)) == [word, word]  # Holm: 2 * .01 and 1 * .04
    assert verdicts(*pair(0.03, 0.04)) == ["no clear difference"] * 2  # 2 * .03, kept in order
    assert verdicts(*pair(0.01, 0.06)) == [word, "no clear difference"]
    assert verdicts(*pair(0.01, 0.05)) == [word, "no clear difference"]  # .05 is not below .05
    assert verdicts(*pair(0.25, 0.25, num_seeds=3)) == [word, word]  # at least 2 * .25
    assert verdicts(*pair(0.01, 0.01, num_seeds=2)) == ["too few seeds"] * 2
    assert verdicts(*pair(0.2)) == [word]  # alone: the interval decides
    assert said in reading(pair(0.01, 0.04))[0]
    assert reading(pair(0.03, 0.04))[0].count("no clear difference for `new`") == 1
    assert said not in reading(pair(0.03, 0.04))[0]


def test_a_low_p_value_does_not_make_up_for_an_interval_with_0():
    around = difference(0, p_value=0.002)  # [-0.1, 0.1]
    assert verdicts(around, around) == ["no clear difference"] * 2


@pytest.mark.parametrize(
    ("num_seeds", "count", "word"),
    [
        (7, 3, "no clear difference"),  # 3 / 64 = .047: could be below .05
        (7, 4, "improves"),  # 4 / 64 = .0625
        (6, 2, "improves"),  # 2 / 32 = .0625
        (10, 25, "no clear difference"),  # 25 / 512 = .049
        (10, 26, "improves"),  # 26 / 512 = .051
    ],
)
def test_the_interval_decides_alone_where_no_p_value_could(num_seeds, count, word):
    declared = [difference(p_value=0.5, num_seeds=num_seeds)] * count
    assert verdicts(*declared) == [word] * count


def test_those_on_one_measure_are_corrected_together():
    other = difference(p_value=0.04, measure="the loss")
    rival = difference(p_value=0.04, baseline="older")
    found = adjust([difference(p_value=0.01), rival, other, difference()])
    assert [d.adjusted_p_value for d in found[:3]] == pytest.approx([0.02, 0.04, 0.04])
    assert [d.num_together for d in found] == [2, 2, 1, 1]
    assert math.isnan(found[3].adjusted_p_value)
    assert adjust(found)[:3] == found[:3]


def test_the_number_of_comparisons_is_said():
    few = [difference(p_value=0.25, num_seeds=3)] * 12
    assert reading(few)[-1].endswith(
        "12 comparisons were made; at 3 seeds no p-value corrected for their number (Holm) can "
        "fall below .05, so verdicts rest on uncorrected intervals."
    )
    assert reading([difference(p_value=0.002)] * 12)[-1].endswith(
        " 12 comparisons were made; verdicts hold after Holm's correction for their number."
    )
    two = [difference(p_value=0.01, measure=m) for m in ("the value", "the loss")]
    assert reading(two * 2)[-1].endswith(
        " 4 comparisons were made; verdicts hold after Holm's correction for their number on each "
        "measure."
    )
    assert reading(two)[-1].endswith(
        " 2 comparisons were made; verdicts rest on intervals that are not corrected for their "
        "number."
    )
    assert reading(two[:1])[-1].endswith(" 1 comparison was made.")
    assert reading([difference(p_value=0.5, num_seeds=2)] * 3)[-1].endswith(
        " 3 comparisons were made."
    )
    assert reading([difference(p_value=0.01), difference(p_value=0.25, num_seeds=3)])[-1].endswith(
        " 2 comparisons were made; verdicts hold after Holm's correction for their number, but 1 "
        "of them rest on uncorrected intervals: at 3 seeds their corrected p-value can't fall "
        "below .05."
    )
