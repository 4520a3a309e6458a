"""Mutants of statistics, metrics and objectives."""

from benchmarks.mutants.mutant import mutants_of

MATHEMATICS = [
    *mutants_of(
        "benchmarks/reports/statistics.py",
        "tests/benchmarks/test_stats.py",
        [
            ("TRIMMED = 0.25", "TRIMMED = 0.2"),
            ("ordered[..., dropped : count - dropped]", "ordered[..., : count - dropped]"),
            ("left - right,", "right - left,"),
            ("0.5 + 0.5 * sign", "0.5 - 0.5 * sign"),
            (
                "    tail = 0.5 * (1.0 - confidence)\n    low, high = np.quantile(resampled",
                "    tail = 1.0 - confidence\n    low, high = np.quantile(resampled",
            ),
            (
                "drawn = generator.integers(num_runs, size=(num_resamples, num_runs, num_tasks))",
                "drawn = generator.integers(num_runs, size=(num_resamples, num_runs, 1))",
            ),
        ],
    ),
    *mutants_of(
        "benchmarks/reports/significance.py",
        "tests/benchmarks/test_significance.py",
        [
            ("(len(p) - np.arange(len(p)))", "len(p)"),
            ("np.minimum(scaled, 1.0)", "scaled"),
            ("np.maximum.accumulate(p[order]", "np.asarray(p[order]"),
            ("flipped = np.abs(signs @ d)", "flipped = signs @ d"),
            ("(flipped >= abs(", "(flipped > abs("),
        ],
    ),
    *mutants_of(
        "benchmarks/reports/power_law.py",
        "tests/benchmarks/test_power_law.py",
        [
            ("/ self.unit) ** -self.exponent", "/ self.unit) ** self.exponent"),
            ("(level - scale[..., None] * mean)", "(level + scale[..., None] * mean)"),
            ("np.where(ok, scale, through_zero)", "scale"),
            ("error.argmin(1)", "error.argmax(1)"),
        ],
    ),
    *mutants_of(
        "benchmarks/reports/reading.py",
        "tests/benchmarks/test_report.py",
        [
            ('"improves" if self.higher_is_better else "worsens"', '"improves"'),
            ('"lowers" if self.higher_is_better else "improves"', '"lowers"'),
            ("paired_difference(ours, theirs,", "paired_difference(theirs, ours,"),
            ("MIN_SEEDS = 3", "MIN_SEEDS = 1"),
        ],
    ),
]
