"""Tables of how good frozen rankers are: a card's grades, overall and by group of ads."""

import pandas as pd

from benchmarks.reports.blocks import Cell, Table
from benchmarks.reports.lookup import interval_cells
from benchmarks.runs.results import under
from simulators.rankers.cards import MIN_POSITIVES, NEW_DAYS, OVERALL

CARD_COLUMNS = {
    "AUC": "auc",
    "log-loss": "log_loss",
    "ECE": "ece",
    "sum(p)/sum(y)": "ratio",
    "rate": "rate",
    "positives": "num_positives",
    "rows": "num_rows",
}
"""Heading to metric."""


def card_row(results: pd.DataFrame, task: str, group: str, method: str, side: str) -> list[Cell]:
    """Return one row's cells: the method's own grades, with `side` `_oracle` those of the truth."""
    shared = ("rate", "num_positives", "num_rows")
    metrics = [m if m in shared else f"{m}{side}" for m in CARD_COLUMNS.values()]
    return interval_cells(under(results, task=task, group=group), method, metrics)


def group_table(results: pd.DataFrame, task: str, method: str) -> Table | None:
    """Return one task's grades by vertical and for new and old ads; None without rows."""
    rows: list[list[Cell]] = []
    oracle = {"AUC of the truth": "auc_oracle", "ECE of the truth": "ece_oracle"}
    mine = results.loc[results["task"] == task, "group"].unique()
    verticals = sorted((g for g in mine if g.startswith("vertical ")), key=lambda g: (len(g), g))
    for group in (OVERALL, *verticals, "new ads", "old ads"):
        row = [group, *card_row(results, task, group, method, "")]
        if row[-1] is not None:
            of_group = under(results, task=task, group=group)
            rows.append([*row, *interval_cells(of_group, method, oracle.values())])
    if not rows:
        return None
    names = ["", *CARD_COLUMNS, *oracle]
    kept = [i for i in range(len(names)) if i == 0 or any(row[i] is not None for row in rows)]
    return Table(
        f"{task} of `{method}` by group",
        [names[i] for i in kept],
        [[row[i] for i in kept] for row in rows],
        f"A new ad started at most {NEW_DAYS} days before the impression. Groups with fewer than "
        f"{MIN_POSITIVES} positives have no AUC, so it may rest on fewer worlds than the counts. "
        "Counts are means per world.",
    )
