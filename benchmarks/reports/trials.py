"""What the trials of a tuning came to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.reports.blocks import Cell, Table
from benchmarks.runs.trials import read_trials

Row = TypeVar("Row")


def read_all(tuned: Mapping[Row, Path | None]) -> dict[Row, dict[str, Any]]:
    """Return the choice of every row that was tuned."""
    return {row: read_trials(path) for row, path in tuned.items() if path is not None}


def rate_table(tuned: Mapping[str, Path | None], name: str, score: str, note: str) -> Table | None:
    """Return every row's learning rates and what each came to; None without tuning.

    `name` heads the rows, `score` what a trial came to.
    """
    rows: list[list[Cell]] = []
    for row, log in read_all(tuned).items():
        words = [
            f"{trial['settings']['learning_rate']:g}: "
            + ("diverged" if trial["score"] is None else f"{trial['score']:.3f}")
            for trial in log["trials"]
        ]
        rows.append([row, f"{log['chosen']['learning_rate']:g}", ", ".join(words)])
    return Table("Learning rates", [name, "chosen", score], rows, note) if rows else None
