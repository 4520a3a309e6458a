"""Plain words computed from intervals; nothing is claimed that an interval does not show."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from benchmarks.reports.significance import holm, sign_flip_p_value
from benchmarks.reports.statistics import Interval, paired_difference, probability_of_improvement
from benchmarks.runs.results import BOOTSTRAP_SEED, seed_table

MIN_SEEDS = 3
"""With fewer seeds the reading gives no verdict."""
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

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`."""
        bounds = (self.interval.low, self.interval.high)
        if self.num_seeds < MIN_SEEDS or not all(map(math.isfinite, bounds)):
            return "too few seeds"
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
    """Return the seed-paired difference of every method from a baseline.

    Methods without this metric, and the baseline itself, are left out.

    Args:
        results: Tidy rows; each seed's largest step counts.
        metric: Name in the table.
        measure: The same in words.
        methods: In the order wanted.
        baseline: What they are compared with.
        split: Of the rows.
        higher_is_better: False for losses and regret.
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
    """Return the same comparisons with p-values corrected for their number (Holm)."""
    adjusted = holm([d.p_value for d in declared])
    return [replace(d, adjusted_p_value=float(p)) for d, p in zip(declared, adjusted, strict=True)]


def reading(differences: Sequence[Difference]) -> list[str]:
    """Return a sentence per measure and baseline, and last how far to trust them.

    Each sentence sorts the methods by verdict and gives every difference with its interval.
    """
    if not differences:
        return []
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
    return [*lines, coverage_note(min(d.num_seeds for d in differences))]


def _size(interval: Interval) -> str:
    size = f"{interval.value:+.3g}"
    if all(map(math.isfinite, (interval.low, interval.high))):
        size += f" [{interval.low:.3g}, {interval.high:.3g}]"
    return size


def coverage_note(num_seeds: int) -> str:
    """Return what a nominal 95 % interval is worth with so few seeds."""
    if num_seeds == 1:
        return "One seed has no interval: nothing here can be told from chance."
    if num_seeds == 2:
        return (
            "Two seeds: an interval is the range between the two and covers the truth about half "
            "of the time, whatever its name; no verdict is given."
        )
    known = next((text for count, text in COVERAGE if num_seeds >= count))
    least = next(count for count, _ in COVERAGE if num_seeds >= count)
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
