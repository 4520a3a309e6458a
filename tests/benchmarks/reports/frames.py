"""Results made by hand, and the cells of a table without their intervals' types."""

from collections.abc import Mapping, Sequence

import pandas as pd

from benchmarks.reports.blocks import Cell, Table
from benchmarks.reports.statistics import Interval
from benchmarks.runs.results import complete

COLUMNS = ["suite", "method", "seed", "step", "split", "metric", "value"]
Values = Mapping[tuple[str, str], float | Sequence[float]]


def frame(
    values: Values,
    *,
    split: str = "test",
    step: int = 0,
    num_seeds: int = 3,
    **conditions: str | int,
) -> pd.DataFrame:
    """Return tidy rows of {(method, metric): value of every seed, or one value for all}."""
    rows = []
    for (method, metric), found in values.items():
        listed = [float(found)] * num_seeds if isinstance(found, int | float) else list(found)
        rows += [("by hand", method, s, step, split, metric, v) for s, v in enumerate(listed)]
    return complete(pd.DataFrame(rows, columns=COLUMNS).assign(**conditions), "by hand")


def plain(cell: Cell) -> Cell:
    """Return a cell; an interval's value in its place."""
    return cell.value if isinstance(cell, Interval) else cell


def rows_of(table: Table) -> dict[str, dict[str, Cell]]:
    """Return {first cell: {column: value}} of a table."""
    return {
        str(row[0]): {
            name: plain(cell) for name, cell in zip(table.columns[1:], row[1:], strict=True)
        }
        for row in table.rows
    }
