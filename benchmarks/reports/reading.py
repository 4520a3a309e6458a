"""Plain words computed from intervals; nothing is claimed that an interval does not show."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from benchmarks.reports.significance import holm, sign_flip_p_value, smallest_p_value
from benchmarks.reports.statistics import Interval, paired_difference, probability_of_improvement
from benchmarks.runs.results import BOOTSTRAP_SEED, seed_table

MIN_SEEDS = 3
"""With fewer seeds the reading gives no verdict."""
LEVEL = 0.05
"""A verdict on one of several comparisons needs a corrected p-value below this."""
COVERAGE = ((10, "93 to 94 %"), (5, "about 90 %"), (3, "75 to 89 %"))
"""What a nominal 95 % bootstrap interval covers, from this many seeds on (simulated)."""

VERDICTS = {
    "improves": "improved by",
    "lowers": "lowered by",
    "worsens": "worsened by",
    "no clear difference": "no clear difference for",
    "too few seeds": "too few seeds to tell for",
}
"""How a sentence says them."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A method against a baseline, on one measure, over the seeds that both have."""

    method: str
    baseline: str
    measure: str
    """In words, as it stands in a sentence: "the value under the rankers"."""
    interval: Interval
    """Of the seed-paired differences, method minus baseline."""
    num_seeds: int
    higher_is_better: bool = True
    chance: float = math.nan
    """Probability that a run of the method beats a run of the baseline."""
    p_value: float = math.nan
    """Of a mean difference of 0, by sign flips (`benchmarks.reports.significance`)."""
    adjusted_p_value: float = math.nan
    """The same after Holm's correction over the comparisons declared together; see `adjust`."""
    num_together: int = 1
    """How many were declared together, itself among them."""

    @property
    def has_seeds(self) -> bool:
        """Whether there is enough for a verdict."""
        return self.num_seeds >= MIN_SEEDS and self.interval.has_bounds

    @property
    def is_several(self) -> bool:
        """Whether it is one of several comparisons whose p-values were corrected."""
        return self.num_together > 1 and math.isfinite(self.adjusted_p_value)

    @property
    def is_corrected(self) -> bool:
        """Whether the verdict asks for the corrected p-value: one that could be low enough."""
        smallest = self.num_together * smallest_p_value(self.num_seeds)
        return self.is_several and smallest < LEVEL

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`; of several comparisons both interval and corrected p-value decide.

        Where no corrected p-value can fall below `LEVEL` at this number of seeds, the interval
        decides alone.
        """
        if not self.has_seeds:
            return "too few seeds"
        if self.is_corrected and self.adjusted_p_value >= LEVEL:
            return "no clear difference"
        if self.interval.low > 0:
            return "improves" if self.higher_is_better else "worsens"
        if self.interval.high < 0:
            return "lowers" if self.higher_is_better else "improves"
        return "no clear difference"


def compare(
    results: pd.DataFrame,
    metric: str,
    measure: str,
    methods: Sequence[str],
    baseline: str,
    *,
    split: str = "test",
    higher_is_better: bool = True,
) -> list[Difference]:
    """Return the seed-paired difference of every method from a baseline, at the largest steps.

    Methods without this metric, and the baseline itself, are left out. `measure` is the metric in
    words; `higher_is_better` is False for losses and regret.
    """
    table = seed_table(results, metric, split)
    found = []
    for method in methods:
        if method == baseline or not {method, baseline}.issubset(table.columns):
            continue
        pair = table[[method, baseline]].dropna()
        if pair.empty:
            continue
        ours, theirs = pair[method].to_numpy(), pair[baseline].to_numpy()
        better = (ours, theirs) if higher_is_better else (theirs, ours)
        found.append(
            Difference(
                method=method,
                baseline=baseline,
                measure=measure,
                interval=paired_difference(ours, theirs, BOOTSTRAP_SEED),
                num_seeds=len(pair),
                higher_is_better=higher_is_better,
                chance=probability_of_improvement(*better, BOOTSTRAP_SEED).value,
                p_value=sign_flip_p_value(ours - theirs),
            )
        )
    return found


def adjust(declared: Sequence[Difference]) -> list[Difference]:
    """Return the same comparisons with p-values corrected for their number (Holm).

    Those on one measure count together, whatever their baselines; those without a p-value don't.
    """
    together: dict[str, list[int]] = {}
    for index, d in enumerate(declared):
        if math.isfinite(d.p_value):
            together.setdefault(d.measure, []).append(index)
    found = list(declared)
    for indices in together.values():
        p_values = holm([declared[index].p_value for index in indices])
        for index, p in zip(indices, p_values, strict=True):
            found[index] = replace(
                declared[index], adjusted_p_value=float(p), num_together=len(indices)
            )
    return found


def reading(differences: Sequence[Difference]) -> list[str]:
    """Return a sentence per measure and baseline, and last how far to trust them.

    Each sentence sorts the methods by verdict and gives every difference with its interval. The
    p-values are corrected here, for all comparisons on one measure (`adjust`).
    """
    if not differences:
        return []
    differences = adjust(differences)
    groups: dict[tuple[str, str], dict[str, list[str]]] = {}
    for d in differences:
        verdicts = groups.setdefault((d.measure, d.baseline), {verdict: [] for verdict in VERDICTS})
        verdicts[d.verdict].append(f"`{d.method}` ({_size(d.interval)})")
    lines = []
    for (measure, baseline), verdicts in groups.items():
        parts = [f"{VERDICTS[v]} {', '.join(found)}" for v, found in verdicts.items() if found]
        lines.append(
            f"{measure[:1].upper()}{measure[1:]}, against `{baseline}`: {'; '.join(parts)}."
        )
    trust = coverage_note(min(d.num_seeds for d in differences))
    return [*lines, f"{trust} {correction_note(differences)}"]


def correction_note(adjusted: Sequence[Difference]) -> str:
    """Return how many comparisons were made and whether verdicts are corrected for that."""
    made = "1 comparison was" if len(adjusted) == 1 else f"{len(adjusted)} comparisons were"
    text = f"{made} made"
    several = [d for d in adjusted if d.is_several and d.has_seeds]
    weak = [d for d in several if not d.is_corrected]
    per_measure = " on each measure" if len({d.measure for d in adjusted}) > 1 else ""
    number = f"their number{per_measure}"
    if not weak:
        if several:
            return f"{text}; verdicts hold after Holm's correction for {number}."
        if len(adjusted) > 1 and any(d.has_seeds for d in adjusted):
            return f"{text}; verdicts rest on intervals that are not corrected for their number."
        return f"{text}."
    seeds = min(d.num_seeds for d in weak)
    if len(weak) == len(several):
        return (
            f"{text}; at {seeds} seeds no p-value corrected for {number} (Holm) can fall below "
            ".05, so verdicts rest on uncorrected intervals."
        )
    return (
        f"{text}; verdicts hold after Holm's correction for {number}, but {len(weak)} of them rest "
        f"on uncorrected intervals: at {seeds} seeds their corrected p-value can't fall below .05."
    )


def count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 seed`, `2 seeds`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _size(interval: Interval) -> str:
    bounds = f" [{interval.low:.3g}, {interval.high:.3g}]" if interval.has_bounds else ""
    return f"{interval.value:+.3g}{bounds}"


def coverage_note(num_seeds: int) -> str:
    """Return what a nominal 95 % interval is worth with so few seeds."""
    if num_seeds == 1:
        return "One seed has no interval: nothing here can be told from chance."
    if num_seeds == 2:
        return (
            "Two seeds: an interval is the range between the two and covers the truth about half "
            "of the time, whatever its name; no verdict is given."
        )
    least, known = next(entry for entry in COVERAGE if num_seeds >= entry[0])
    mean = (
        " At 3 seeds nothing is trimmed: the interquartile mean is the mean. Where scores are "
        "skewed it is less: 63 to 76 % in `python -m benchmarks.reports.coverage`."
        if num_seeds == 3
        else ""
    )
    return (
        f"Intervals are nominal 95 % bootstrap intervals over {num_seeds} seeds; at {least} seeds "
        f"such an interval covers the truth {known} of the time only.{mean}"
    )
