"""Paired tests and profiles against scipy and hand-worked numbers."""

import itertools

import numpy as np
import pytest
from scipy import stats

from benchmarks.reports.significance import holm, sign_flip_p_value
from benchmarks.reports.statistics import performance_profile


def test_sign_flips_equal_an_enumeration_and_scipy() -> None:
    differences = np.array([0.3, -0.1, 0.45, 0.2, 0.05])
    total = abs(differences.sum())
    count = sum(
        abs(np.dot(signs, differences)) >= total - 1e-12
        for signs in itertools.product((1, -1), repeat=5)
    )
    assert sign_flip_p_value(differences) == pytest.approx(count / 32)
    theirs = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_p_value(differences) == pytest.approx(theirs.pvalue)


def test_few_seeds_have_a_floor_and_no_difference_is_certain() -> None:
    for n in (1, 3, 5, 10):
        assert sign_flip_p_value(np.linspace(1.0, 2.0, n)) == pytest.approx(2 / 2**n)
    assert sign_flip_p_value([0.0, 0.0, 0.0]) == 1.0
    assert sign_flip_p_value([1.0, -1.0]) == 1.0
    sampled = sign_flip_p_value(np.random.default_rng(0).normal(0.5, 1.0, 30))
    normal = stats.ttest_1samp(np.random.default_rng(0).normal(0.5, 1.0, 30), 0.0).pvalue
    assert sampled == pytest.approx(normal, abs=0.01)
    with pytest.raises(ValueError, match="differences must be finite"):
        sign_flip_p_value([np.nan])


def test_holm_by_hand() -> None:
    # Sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, kept in order: .04 .06 .06 .06.
    assert holm([0.03, 0.01, 0.04, 0.02]).tolist() == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.7, 0.9]).tolist() == [1.0, 1.0]  # not 1.4
    assert holm([]).tolist() == []
    with pytest.raises(ValueError, match=r"p-values must be \[m\] and lie in \[0, 1\]"):
        holm([1.5])


def test_profiles_are_shares_of_runs_above_each_threshold() -> None:
    scores = np.array([[0.1, 0.5], [0.4, 0.9], [0.2, 0.8]])
    profile = performance_profile(scores, [0.0, 0.4, 0.5, 1.0], 0)
    assert profile.share.tolist() == pytest.approx([1.0, 3 / 6, 2 / 6, 0.0])
    assert (profile.low <= profile.share).all()
    assert (profile.high >= profile.share).all()
    # Task 2 is above .4 in every run and task 1 at 0.4 in none: nothing to resample.
    assert profile.low[1] == profile.high[1] == 0.5
    alone = performance_profile(scores[:1], [0.3], 0)
    assert np.isnan(alone.low).all()
