"""Mutants of statistics and of the words that are made of them."""

MATHEMATICS = r"""
benchmarks/reports/statistics.py < benchmarks/test_stats.py benchmarks/test_significance.py
    TRIMMED = 0.25 ==> TRIMMED = 0.2
    ordered[..., dropped : count - dropped] ==> ordered[..., : count - dropped]
    left - right, ==> right - left,
    _share_of_wins(left[None], right[None]) ==> _share_of_wins(right[None], left[None])
    above = table[..., None] > levels ==> above = table[..., None] >= levels
    0.5 + 0.5 * sign ==> 0.5 - 0.5 * sign
    np.quantile(resampled, [tail, 1.0 - tail]) ==> np.quantile(resampled, [2 * tail, 1.0 - tail])
    size=(num_resamples, num_runs, num_tasks)) ==> size=(num_resamples, num_runs, 1))
benchmarks/reports/significance.py < benchmarks/test_significance.py
    (len(p) - np.arange(len(p))) ==> len(p)
    np.minimum(scaled, 1.0) ==> scaled
    np.maximum.accumulate(p[order] ==> np.asarray(p[order]
    flipped = np.abs(signs @ d) ==> flipped = signs @ d
    (flipped >= abs( ==> (flipped > abs(
benchmarks/reports/power_law.py < benchmarks/test_power_law.py
    / self.unit) ** -self.exponent ==> / self.unit) ** self.exponent
    (level - scale[..., None] * mean) ==> (level + scale[..., None] * mean)
    np.where(ok, scale, through_zero) ==> scale
    error.argmin(1) ==> error.argmax(1)
benchmarks/reports/reading.py < benchmarks/test_report.py benchmarks/test_corrected_reading.py
    "improves" if self.higher_is_better else "worsens" ==> "improves"
    "lowers" if self.higher_is_better else "improves" ==> "lowers"
    paired_difference(ours, theirs, ==> paired_difference(theirs, ours,
    MIN_SEEDS = 3 ==> MIN_SEEDS = 1
    LEVEL = 0.05 ==> LEVEL = 0.5
    better = (ours, theirs) if higher_is_better ==> better = (theirs, ours) if higher_is_better
    self.adjusted_p_value >= LEVEL ==> self.p_value >= LEVEL
    smallest < LEVEL ==> smallest > LEVEL
    num_together=len(indices) ==> num_together=len(declared)
"""
