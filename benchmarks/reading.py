"""Plain words computed from intervals; nothing is claimed that an interval does not show."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from benchmarks.results import BOOTSTRAP_SEED, seed_table
from benchmarks.stats import Interval, paired_difference, probability_of_improvement

MIN_SEEDS = 3
"""With fewer seeds the reading gives no verdict."""
COVERAGE = ((10, "93 to 94 %"), (5, "about 90 %"), (3, "75 to 89 %"))
"""What a nominal 95 % bootstrap interval covers, from this many seeds on (simulated)."""


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

    @property
    def verdict(self) -> str:
        """`improves`, `lowers`, `no clear difference` or `too few seeds`."""
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
            )
        )
    return found


def sentence(difference: Difference) -> str:
    """Return one difference in words, with its interval."""
    d = difference
    size = f"{d.interval.value:+.3g}"
    if all(map(math.isfinite, (d.interval.low, d.interval.high))):
        size += f" [{d.interval.low:.3g}, {d.interval.high:.3g}]"
    if d.verdict == "too few seeds":
        seeds = "one seed" if d.num_seeds == 1 else f"{d.num_seeds} seeds"
        return (
            f"`{d.method}` against `{d.baseline}` in {d.measure}: {size}; {seeds} can't tell a "
            "difference from chance."
        )
    if d.verdict == "no clear difference":
        return f"`{d.method}`: no clear difference from `{d.baseline}` in {d.measure} ({size})."
    return f"`{d.method}` {d.verdict} {d.measure} against `{d.baseline}` ({size})."


def reading(differences: Sequence[Difference]) -> list[str]:
    """Return a sentence per difference, and how far to trust them."""
    if not differences:
        return []
    return [sentence(d) for d in differences] + [
        coverage_note(min(d.num_seeds for d in differences))
    ]


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
    exact = f"at {least} seeds" if num_seeds == least else f"at {least} seeds, and few more,"
    if num_seeds > 10:
        exact = "at 10 seeds"
    mean = (
        " At 3 seeds nothing is trimmed: the interquartile mean is the mean."
        if num_seeds == 3
        else ""
    )
    return (
        f"Intervals are nominal 95 % bootstrap intervals over {num_seeds} seeds; {exact} such an "
        f"interval covers the truth {known} of the time only.{mean}"
    )
