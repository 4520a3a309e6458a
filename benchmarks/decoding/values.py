"""Look-ups in the decoding suite's rows, and what is measured against its targets."""

from dataclasses import dataclass

import pandas as pd

from benchmarks.decoding.catalogues import SIGNATURE
from benchmarks.decoding.presets import CATALOGUES, LOAD, PRECISION
from benchmarks.decoding.targets import GROWTH, LARGE, SMALL, Target, catalogue_targets
from benchmarks.reports.lookup import median_of
from benchmarks.reports.statistics import Interval
from benchmarks.runs.results import under, without_conditions


def quotient(
    results: pd.DataFrame, part: str, modes: tuple[str, str], **at: str | int
) -> Interval | None:
    """Return requests per second of one mode over those of another, both of the same round.

    Median over rounds, with the lowest and the highest round; None without rows of both.
    """
    ours, theirs = (_of_rounds(under(results, mode=mode, **at), part) for mode in modes)
    found = (ours / theirs).dropna()
    if found.empty:
        return None
    return Interval(float(found.median()), float(found.min()), float(found.max()))


def _of_rounds(results: pd.DataFrame, part: str) -> pd.Series:
    rows = without_conditions(results)
    wanted = (rows["method"] == part) & (rows["metric"] == "requests_per_s")
    return rows[wanted].set_index("seed")["value"]


def sizes_with(results: pd.DataFrame, metric: str, **at: str | int) -> list[int]:
    """Return the catalogues that have a figure, in ads, rising."""
    rows = under(results, **at)
    wanted = (rows["method"] == CATALOGUES) & (rows["metric"] == metric)
    numbers = rows.loc[wanted, "num_ads"].unique().tolist()
    return sorted(
        number
        for number in numbers
        if median_of(results, CATALOGUES, metric, num_ads=number, **at) is not None
    )


@dataclass(frozen=True)
class Growth:
    """How many times as long a search takes in the largest catalogue as in the smallest."""

    fewest: int
    most: int
    """In ads."""
    times: float


def growth(results: pd.DataFrame, mode: str = SIGNATURE) -> Growth | None:
    """Return the growth up to 10 million ads; None where fewer than two were measured."""
    numbers = [n for n in sizes_with(results, "search_ms", mode=mode) if n <= LARGE]
    if len(numbers) < 2:
        return None
    first, last = (
        median_of(results, CATALOGUES, "search_ms", mode=mode, num_ads=n) or 0.0
        for n in (numbers[0], numbers[-1])
    )
    return Growth(numbers[0], numbers[-1], last / first)


@dataclass(frozen=True)
class Judged:
    """A target beside what was measured."""

    words: str
    measured: float | None
    most: float
    unit: str

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None where nothing was measured."""
        return None if self.measured is None else self.measured <= self.most

    @property
    def verdict(self) -> str:
        """The same in words."""
        if self.measured is None:
            return "not measured"
        if self.is_met:
            return "met"
        return f"missed: {self.measured / self.most:.2f} times" if self.most else "missed"

    @property
    def figure(self) -> str:
        """What was measured, as text."""
        return "\N{EN DASH}" if self.measured is None else _text(self.measured, self.unit)

    @property
    def bound(self) -> str:
        """The target, as text."""
        return f"at most {_text(self.most, self.unit)}"


def _text(number: float, unit: str) -> str:
    return f"{number:,.3g} {unit}" if number < 1_000 else f"{number:,.0f} {unit}"


def judged(results: pd.DataFrame, parts: tuple[str, ...]) -> list[Judged]:
    """Return every target of these parts beside its figure."""
    found = []
    if CATALOGUES in parts:
        found += [_of_catalogue(results, target) for target in catalogue_targets()]
        grown = growth(results)
        whole = grown is not None and (grown.fewest, grown.most) == (SMALL, LARGE)
        measured = grown.times if grown is not None and whole else None
        words = f"a search with {LARGE:,} ads over one with {SMALL:,}"
        found.append(Judged(words, measured, GROWTH, "times"))
    if PRECISION in parts:
        illegal = _total(results, PRECISION, "illegal_ads")
        found.append(Judged("illegal ads in any precision", illegal, 0.0, "ads"))
    if LOAD in parts:
        wrong = _smallest(results, LOAD, "same_list_share")
        words = "answers under load unlike a direct search"
        found.append(Judged(words, None if wrong is None else 100 * (1 - wrong), 0.0, "%"))
    return found


def _of_catalogue(results: pd.DataFrame, target: Target) -> Judged:
    at = {name: x for name in ("mode", "part") if (x := getattr(target, name))}
    words, number = target.words, target.num_ads
    if not number:
        numbers = [n for n in sizes_with(results, target.metric, **at) if n <= LARGE]
        number = numbers[-1] if numbers else LARGE
        words = f"{words}, {number:,} ads"
    measured = median_of(results, CATALOGUES, target.metric, num_ads=number, **at)
    return Judged(words, measured, target.most, target.unit)


def _total(results: pd.DataFrame, part: str, metric: str) -> float | None:
    found = results[(results["method"] == part) & (results["metric"] == metric)]["value"]
    return float(found.sum()) if len(found) else None


def _smallest(results: pd.DataFrame, part: str, metric: str) -> float | None:
    """Return the smallest share of any load and round."""
    found = results[(results["method"] == part) & (results["metric"] == metric)]["value"]
    return float(found.min()) if len(found) else None
