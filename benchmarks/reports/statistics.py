"""Statistics over few seeds: interquartile mean, bootstrap intervals, probability of improvement.

The definitions are rliable's (Agarwal et al. 2021, "Deep reinforcement learning at the edge of the
statistical precipice"), which can't be imported beside pandas 3. `scipy.stats.bootstrap` knows no
strata and draws others under a seed, so published intervals would change.

Dims: R runs (seeds), T tasks (worlds or markets that the same runs are repeated on).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scores = NDArray[np.float64]
Statistic = Callable[[Scores], Scores]

NUM_RESAMPLES = 2_000
CONFIDENCE = 0.95
TRIMMED = 0.25
"""Share of the scores that the interquartile mean drops at either end."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; the bounds are NaN where one run gives none."""

    value: float
    low: float
    high: float

    @property
    def has_bounds(self) -> bool:
        """Whether both bounds are known."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def interquartile_mean(scores: ArrayLike) -> Scores:
    """Return the mean of the middle half of the last axis.

    floor(n / 4) scores are dropped at either end, as `scipy.stats.trim_mean(x, 0.25)` does, so for
    n = 3 nothing is dropped and the interquartile mean is the mean. SciPy's own adds the scores in
    another order, and the last bits of published figures would change.

    Args:
        scores: [..., n], finite, n >= 1.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64), axis=-1)
    count = ordered.shape[-1]
    dropped = int(TRIMMED * count)
    return ordered[..., dropped : count - dropped].mean(axis=-1)


def bootstrap(
    scores: ArrayLike,
    seed: int,
    *,
    statistic: Statistic = interquartile_mean,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Return a statistic of all scores with its stratified percentile bootstrap interval.

    Runs are drawn with replacement inside every task on its own (strata), and the statistic is
    taken over all R * T scores together.

    Args:
        scores: [R] or [R, T], finite.
        seed: Of the resampling.
        statistic: Maps [..., n] to [...].
        num_resamples: Bootstrap samples.
        confidence: Nominal coverage in (0, 1).

    Returns:
        The statistic and the interval; NaN bounds where R = 1.

    Raises:
        ValueError: Empty or non-finite scores.
    """
    table = _as_table(scores)
    value = float(statistic(table.reshape(-1)))
    if len(table) == 1:
        return Interval(value, math.nan, math.nan)
    drawn = _resample(table, num_resamples, np.random.default_rng(seed))
    bounds = percentile_bounds(statistic(drawn.reshape(num_resamples, -1)), confidence)
    return Interval(value, *bounds.tolist())


def paired_difference(scores: ArrayLike, baseline: ArrayLike, seed: int) -> Interval:
    """Return the interquartile mean of the seed-paired differences `scores - baseline`.

    Both methods met the same world, requests and luck under a seed, so the differences are what is
    drawn again, never the two sides on their own: what the seeds have in common cancels.

    Args:
        scores: [R] or [R, T].
        baseline: Same shape, same seeds in the same order.
        seed: Of the resampling.

    Raises:
        ValueError: Shapes differ, empty or non-finite scores.
    """
    left, right = _as_table(scores), _as_table(baseline)
    if left.shape != right.shape:
        raise ValueError(f"paired scores need one shape, got {left.shape} and {right.shape}")
    return bootstrap(left - right, seed)


def probability_of_improvement(
    scores: ArrayLike,
    baseline: ArrayLike,
    seed: int,
    *,
    num_resamples: int = NUM_RESAMPLES,
) -> Interval:
    """Return P(a run of ours beats a run of the baseline), averaged over tasks; ties count half.

    Runs are not paired: this is the Mann-Whitney U statistic over R * R'.

    Args:
        scores: [R] or [R, T].
        baseline: [R'] or [R', T].
        seed: Of the resampling; the runs of both sides are drawn on their own.
        num_resamples: Bootstrap samples.

    Returns:
        The probability and its interval; NaN bounds where either side has one run.

    Raises:
        ValueError: Different numbers of tasks, empty or non-finite scores.
    """
    left, right = _as_table(scores), _as_table(baseline)
    if left.shape[1] != right.shape[1]:
        raise ValueError(
            f"both sides need the same tasks, got {left.shape[1]} and {right.shape[1]}"
        )
    value = float(_share_of_wins(left[None], right[None])[0])
    if min(len(left), len(right)) == 1:
        return Interval(value, math.nan, math.nan)
    generator = np.random.default_rng(seed)
    sides = [_resample(table, num_resamples, generator) for table in (left, right)]
    return Interval(value, *percentile_bounds(_share_of_wins(*sides)).tolist())


@dataclass(frozen=True)
class Profile:
    """Share of runs above each threshold, with its pointwise interval; arrays [N]."""

    threshold: Scores
    share: Scores
    low: Scores
    high: Scores


def performance_profile(scores: ArrayLike, thresholds: ArrayLike, seed: int) -> Profile:
    """Return the share of runs that score above each threshold (rliable's run-score distribution).

    Args:
        scores: [R] or [R, T].
        thresholds: [N].
        seed: Of the resampling; runs are drawn inside every task.

    Raises:
        ValueError: Empty or non-finite scores.
    """
    table = _as_table(scores)
    levels = np.asarray(thresholds, dtype=np.float64)
    above = table[..., None] > levels  # [R, T, N]
    share = above.mean(axis=(0, 1))
    if len(table) == 1:
        nothing = np.full_like(share, np.nan)
        return Profile(levels, share, nothing, nothing)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(table), size=(NUM_RESAMPLES, *table.shape))
    counts = np.stack(
        [np.take_along_axis(above, rows[:, :, None], axis=0).mean(axis=(0, 1)) for rows in drawn]
    )
    return Profile(levels, share, *percentile_bounds(counts))


def _share_of_wins(left: Scores, right: Scores) -> Scores:
    """Return wins plus half the ties over all pairs of runs: [S, R, T], [S, R', T] -> [S]."""
    sign = np.sign(left[:, :, None] - right[:, None])
    return 0.5 + 0.5 * sign.mean(axis=(1, 2, 3))


def percentile_bounds(resampled: ArrayLike, confidence: float = CONFIDENCE) -> Scores:
    """Return the interval that holds this share of the resamples [S, ...]: [2, ...], low first."""
    tail = 0.5 * (1.0 - confidence)
    return np.quantile(np.asarray(resampled), [tail, 1.0 - tail], axis=0)


def _resample(table: Scores, num_resamples: int, generator: np.random.Generator) -> Scores:
    """Return as many runs drawn inside every task: [R, T] -> [S, R, T]."""
    drawn = generator.integers(len(table), size=(num_resamples, *table.shape))
    return np.take_along_axis(table[None], drawn, axis=1)


def _as_table(scores: ArrayLike) -> Scores:
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim == 1:
        table = table[:, None]
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"scores must be [R] or [R, T] and not empty, got shape {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError("scores must be finite: a run without a score has no place here")
    return table
