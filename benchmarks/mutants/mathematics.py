"""Mutants of statistics, of the words that are made of them and of off-policy estimators."""

MATHEMATICS = r"""
benchmarks/reports/statistics.py < benchmarks/test_stats.py benchmarks/test_significance.py
    TRIMMED = 0.25 ==> TRIMMED = 0.2
    ordered[..., dropped : count - dropped] ==> ordered[..., : count - dropped]
    left - right, ==> right - left,
    _share_of_wins(left[None], right[None]) ==> _share_of_wins(right[None], left[None])
    above = table[..., None] > levels ==> above = table[..., None] >= levels
    0.5 + 0.5 * sign ==> 0.5 - 0.5 * sign
    (resampled), [tail, 1.0 ==> (resampled), [2 * tail, 1.0
    size=(num_resamples, *table.shape)) ==> size=(num_resamples, len(table), 1))
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
agents/off_policy/estimators.py < agents/off_policy/test_estimators.py
    clip_weight(target / propensity ==> clip_weight(propensity / target
    return weight.clamp_max(max_weight) ==> return weight
    weight.sum(-1).square() / square ==> weight.sum(-1) / square
    spread / math.sqrt(num_rows) ==> spread
    half = Z_95 * std_error ==> half = std_error
    std_error.where(supported, math.inf) ==> std_error
    weight * (reward - value[..., None]) ==> weight * reward
    ratio_error(residual) / divisor ==> ratio_error(residual)
    .sqrt() * math.sqrt(num_rows / (num_rows - 1)) ==> .sqrt()
    expected + weight * residual ==> expected - weight * residual
agents/off_policy/slate.py < agents/off_policy/test_estimators.py
    target).prod(-1, keepdim=True) ==> target).mean(-1, keepdim=True)
    target).cumprod(-1)\n    return ==> target)\n    return
    direct_method(expected_prediction[..., 0]) ==> direct_method(expected_prediction.sum(-1))
    weight[..., :1]), weight[..., :-1] ==> weight[..., :1]), weight[..., 1:]
    weight * residual + before * expected ==> weight * residual + weight * expected
    total = weight.sum(-2) ==> total = weight.mean(-2)
    (reward - value[..., None, :]) ==> reward
    .amin(-1), ==> .amax(-1),
    .any(-2).all(-1) ==> .any(-2).any(-1)
benchmarks/off_policy/grades.py < benchmarks/suites/test_off_policy_grades.py
    unit = abs(truth["behavior"]) ==> unit = 1.0
    (e.value - truth[policy]) / unit ==> (truth[policy] - e.value) / unit
    (e.low <= truth[policy]) & ==> (e.low >= truth[policy]) &
    error.square().mean().sqrt() ==> error.abs().mean()
    error.abs().median() ==> error.median()
    (e.high - e.low) / unit ==> (e.high - e.low)
    (~supported).double() ==> supported.double()
    out=np.zeros_like(product) ==> out=np.ones_like(product)
    goes_on[..., :-1] ==> goes_on[..., 1:]
    (below.flip(-1).cumsum(-1).flip(-1) - below) ==> below.flip(-1).cumsum(-1).flip(-1)
    (value.cumsum(-1) - value) ==> value.cumsum(-1)
"""
