"""Every number in a table of a published page comes from the page's own results."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.reports.statistics import bootstrap
from benchmarks.runs.results import BOOTSTRAP_SEED

FOLDER = Path(__file__).parents[2] / "docs" / "results"
PAGES = sorted(page.stem for page in FOLDER.glob("*.md"))
NUMBER = r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?"
INTERVAL = re.compile(rf"({NUMBER}) \[({NUMBER}), ({NUMBER})\]")
TUNING = "choices of a tuning, which are files of the run"
SETTINGS = "settings of the run"
DERIVED = "worked out from several measures, as `test_alignment_report` does by hand"
_SIZES = "Loss by size (nats per path)"
_ALIGNMENT = {
    "Value alignment (the columns of GPR Tab. 3)/avg final_value": DERIVED,
    "Value alignment (the columns of GPR Tab. 3)/max final_value": DERIVED,
    "Against the warm start": DERIVED,
    "At the same wall-clock": DERIVED,
    "Hyper-parameters": SETTINGS,
    "Training": SETTINGS,
    "Where the time goes": DERIVED,
}
_STUDIES = (
    "alignment",
    "alignment-constant",
    "alignment-medium",
    "alignment-medium-num_steps_600",
)
KNOWN = {
    **{(page, start): why for page in _STUDIES for start, why in _ALIGNMENT.items()},
    ("alignment-constant", "Tuning"): TUNING,
    ("alignment-medium", "Tuning"): TUNING,
    ("alignment-medium", "Does a better critic"): "correlations over seeds",
    ("tokenizers", "GPR Tab. 1"): "the paper's numbers",
    ("tokenizers", "Tuning: collision rate on items that the test does not use/chosen"): TUNING,
    ("scaling", "Learning rates"): TUNING,
    ("scaling", f"{_SIZES}/width"): SETTINGS,
    ("architecture", "Have parts collapsed?/statistic"): "a name with a number in it",
    ("architecture", "Learning rates/validation"): TUNING,
    ("architecture", "GPR Tab. 2"): "the paper's numbers",
}
"""(page, start of a table's title, None for all) -> why its numbers are not derived here."""


@dataclass(frozen=True)
class Cell:
    """A cell with a number: where it stands, and its text."""

    title: str
    row: str
    column: str
    text: str


def cells(text: str) -> Iterator[Cell]:
    """Yield every cell with a number of a page's tables, but for the rows' names."""
    title, header = "", None
    for line in text.splitlines():
        if line.startswith("**"):
            title = line.strip("*")
        if not line.startswith("| "):
            header = None
            continue
        row = [part.strip() for part in line.strip().strip("|").split("|")]
        if header is None:
            header = row
        elif not set("".join(row)) <= set("-: "):
            pairs = zip(header[1:], row[1:], strict=True)
            yield from (
                Cell(title, row[0], name, part) for name, part in pairs if re.search(r"\d", part)
            )


@cache
def results(page: str) -> pd.DataFrame:
    """Return a page's rows at their last step."""
    table = pd.read_parquet(FOLDER / page / "results.parquet")
    key = [name for name in table.columns if name not in ("step", "value")]
    return table.sort_values("step", kind="stable").drop_duplicates(key, keep="last")


@cache
def known_values(page: str, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a method's intervals [N, 3] and its means, medians and interquartile means [M].

    Without a method they are those of all.
    """
    table = results(page)
    own = table if not method else table[table["method"] == method]
    key = [name for name in table.columns if name not in ("seed", "step", "value")]
    intervals, singles = [(np.nan,) * 3], [np.nan]
    for _, values in own.groupby(key)["value"]:
        found = bootstrap(values.to_numpy(), BOOTSTRAP_SEED)
        intervals.append((found.value, found.low, found.high))
        singles += [found.value, values.mean(), values.median()]
    return np.array(intervals), np.array(singles)


@cache
def known_differences(page: str) -> np.ndarray:
    """Return the intervals [N, 3] of the seed-paired differences of all pairs on a market."""
    table = results(page)
    wanted = table["metric"].isin(("proxy_share_expected", "truth_share_expected", "entropy"))
    found = [(np.nan,) * 3]
    for _, rows in table[wanted & (table["split"] == "test")].groupby(["metric", "market"]):
        wide = rows.pivot(index="seed", columns=["method", "ablation"], values="value")
        for ours, theirs in permutations(wide.columns, 2):
            pair = (wide[ours] - wide[theirs]).dropna()
            if len(pair) > 1:
                interval = bootstrap(pair.to_numpy(), BOOTSTRAP_SEED)
                found.append((interval.value, interval.low, interval.high))
    return np.array(found)


def number(text: str) -> tuple[float, float]:
    """Return a number and half a unit of its last digit."""
    plain, _, exponent = text.replace(",", "").partition("e")
    decimals = len(plain.partition(".")[2]) - int(exponent or 0)
    return float(text.replace(",", "")), 0.5001 * 10.0**-decimals


def is_derived(page: str, cell: Cell) -> bool:
    """Return whether a cell is the summary of some measure of its row's method."""
    method = re.split(r"[@+,]", cell.row.strip("`"))[0]
    method = "rankers" if cell.title.startswith("What the worlds pay for") else method
    method = method if method in set(results(page)["method"]) else ""
    intervals, singles = known_values(page, method)
    if any(word in f"{cell.title} {cell.column}" for word in ("difference", "HEPO against")):
        intervals, singles = known_differences(page), known_differences(page)[:, 0]
    found = INTERVAL.search(cell.text)
    if found:
        shown, slack = np.array([number(part) for part in found.groups()]).T
        return bool((np.abs(intervals - shown) <= slack).all(1).any())
    match = re.fullmatch(rf"({NUMBER})(%?)", cell.text)
    if match is None:
        return False
    value, slack = number(match[1])
    scale = 100.0 if match[2] else 1.0
    return bool((np.abs(scale * singles - value) <= slack).any())


def is_known(page: str, cell: Cell) -> bool:
    return any(
        page == of and (start is None or f"{cell.title}/{cell.column}".startswith(start))
        for of, start in KNOWN
    )


@pytest.mark.parametrize("page", PAGES)
def test_numbers_of_tables_come_from_the_results(page: str) -> None:
    found = list(cells((FOLDER / f"{page}.md").read_text(encoding="utf-8")))
    assert found
    wrong = [cell for cell in found if not is_known(page, cell) and not is_derived(page, cell)]
    assert wrong == []
    titles = [f"{cell.title}/{cell.column}" for cell in found]
    for of, start in KNOWN:
        assert of != page or start is None or any(t.startswith(start) for t in titles), start


def test_a_number_that_is_not_in_the_results_is_found() -> None:
    text = "**Loss by size**\n\n| size | held-out loss |\n| --- | --- |\n| 10k | {} |\n"
    (right,) = cells(text.format("8.98 [8.96, 9.00]"))
    (wrong,) = cells(text.format("8.98 [8.96, 9.01]"))
    assert right == Cell("Loss by size", "10k", "held-out loss", "8.98 [8.96, 9.00]")
    assert is_derived("scaling", right)
    assert not is_derived("scaling", wrong)
    assert is_derived("scaling", Cell("", "10k", "", "8.98"))
    assert not is_derived("scaling", Cell("", "10k", "", "9.03"))
    assert not is_derived("scaling", Cell("", "1m", "", "8.98"))
