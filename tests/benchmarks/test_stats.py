import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, trim_mean

from benchmarks.reports.statistics import (
    bootstrap,
    interquartile_mean,
    paired_difference,
    probability_of_improvement,
)

# 10 runs x 4 tasks; the numbers below them are what rliable 1.2 gave for these arrays.
OURS = np.array(
    [
        [1.0, 1.3, 0.73, 0.11],
        [0.55, 0.01, 1.06, 2.34],
        [0.51, 0.38, 1.49, 1.36],
        [1.11, 0.07, 0.97, 1.7],
        [-0.34, 0.54, -0.9, -0.29],
        [-0.84, 0.76, -0.27, 1.27],
        [1.16, 0.81, -1.52, 0.46],
        [0.95, 1.11, -0.53, 0.52],
        [0.02, 0.19, 2.06, 0.19],
        [0.97, 1.88, 0.42, 0.89],
    ]
)
THEIRS = np.array(
    [
        [0.71, 0.66, -0.63, 0.68],
        [1.96, -0.95, 1.46, 0.72],
        [-0.04, 2.6, 1.36, -0.6],
        [0.67, 1.18, 0.41, 1.28],
        [0.53, 1.27, 2.04, -0.08],
        [0.8, 0.14, 0.73, -0.59],
        [0.02, 0.4, 1.5, 1.75],
        [-0.72, -0.19, 1.25, -1.39],
        [0.14, 0.5, 1.86, 1.29],
        [0.27, 0.23, 0.35, 2.12],
    ]
)


def test_interquartile_mean_by_hand():
    # 8 scores: floor(8 / 4) = 2 fall at either end, (3 + 4 + 5 + 6) / 4 stays.
    assert interquartile_mean([100, 1, 6, 3, 5, 4, 2, 7]) == 4.5
    # 5 scores: floor(5 / 4) = 1 falls at either end.
    assert interquartile_mean([-50.0, 1.0, 2.0, 6.0, 70.0]) == 3.0
    # 3 scores: nothing falls, so it is the mean.
    assert interquartile_mean([0.0, 3.0, 9.0]) == 4.0


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 10, 33])
def test_interquartile_mean_is_scipys_trimmed_mean(count):
    scores = np.random.default_rng(count).normal(size=count)
    assert interquartile_mean(scores) == pytest.approx(trim_mean(scores, 0.25), rel=1e-12)


def test_estimates_equal_rliables():
    assert bootstrap(OURS, 0).value == pytest.approx(0.656, abs=1e-12)
    assert bootstrap(THEIRS, 0).value == pytest.approx(0.646, abs=1e-12)
    assert probability_of_improvement(OURS, THEIRS, 0).value == pytest.approx(0.515, abs=1e-12)


def test_intervals_equal_rliables_up_to_resampling_noise():
    # rliable, 20,000 resamples: [0.387, 0.894]; 5,000 resamples: [0.381, 0.641]. Another stream
    # of 20,000 resamples moves a bound by about 0.005.
    found = bootstrap(OURS, 0, num_resamples=20_000)
    assert (found.low, found.high) == pytest.approx((0.387, 0.894), abs=0.015)
    found = probability_of_improvement(OURS, THEIRS, 0, num_resamples=20_000)
    assert (found.low, found.high) == pytest.approx((0.381, 0.641), abs=0.015)


def test_two_runs_give_the_interval_that_enumeration_gives():
    # Two runs resample to (0, 0), (0, 1), (1, 0), (1, 1): means 0, .5, .5, 1, so the 2.5 % and
    # 97.5 % quantiles are the smallest and the largest mean.
    found = bootstrap([0.0, 1.0], 0)
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    # At 40 % nominal coverage the quantiles 30 % and 70 % are both the middle value.
    found = bootstrap([0.0, 1.0], 0, confidence=0.4)
    assert (found.low, found.high) == (0.5, 0.5)


def test_resampling_stays_inside_a_task():
    # Each task is constant over its runs: strata leave nothing to vary.
    found = bootstrap([[1.0, 100.0], [1.0, 100.0], [1.0, 100.0]], 0, statistic=_mean)
    assert (found.low, found.high) == (50.5, 50.5)


def test_pairing_cancels_what_seeds_share():
    shared = np.array([0.0, 50.0, 100.0, 400.0])
    found = paired_difference(shared + 1.0, shared, 0)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    unpaired = bootstrap(shared + 1.0, 0)
    assert unpaired.high - unpaired.low > 100.0


def test_paired_difference_changes_sign_with_the_sides():
    ours, theirs = OURS[:, 0], THEIRS[:, 0]
    forth = paired_difference(ours, theirs, 3)
    back = paired_difference(theirs, ours, 3)
    assert back.value == pytest.approx(-forth.value)
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low))


def test_probability_of_improvement_by_hand():
    # Pairs (2, 1) (2, 2) (3, 1) (3, 2): win, tie, win, win.
    assert probability_of_improvement([2.0, 3.0], [1.0, 2.0], 0).value == 3.5 / 4
    assert probability_of_improvement([5.0, 6.0], [1.0, 2.0], 0).low == 1.0


def test_probability_of_improvement_is_the_mann_whitney_statistic():
    ours, theirs = OURS[:, 1], THEIRS[:7, 2]
    expected = mannwhitneyu(ours, theirs).statistic / (len(ours) * len(theirs))
    assert probability_of_improvement(ours, theirs, 0).value == pytest.approx(expected)


def test_one_run_has_no_interval():
    for found in (bootstrap([2.0], 0), paired_difference([3.0], [1.0], 0)):
        assert found.value == 2.0
        assert math.isnan(found.low)
        assert math.isnan(found.high)


def test_same_seed_same_interval():
    assert bootstrap(OURS, 5) == bootstrap(OURS, 5)
    assert bootstrap(OURS, 5) != bootstrap(OURS, 6)


@pytest.mark.parametrize(
    ("scores", "message"),
    [([], "not empty"), ([1.0, math.nan], "finite"), (np.zeros((2, 2, 2)), "shape")],
)
def test_bad_scores_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        bootstrap(scores, 0)


def test_pairs_need_one_shape():
    with pytest.raises(ValueError, match="one shape"):
        paired_difference([1.0, 2.0], [1.0], 0)


def _mean(scores):
    return scores.mean(axis=-1)
