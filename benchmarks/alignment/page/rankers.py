"""What the rankers are worth, and what the worlds pay for."""

import pandas as pd

from benchmarks.alignment.page.tables import filled
from benchmarks.reports.blocks import Block, Cell, Paragraph, Section, Table, present
from benchmarks.reports.cards import group_table
from benchmarks.reports.lookup import TEST, interval_cells, values_of
from benchmarks.runs.results import under
from simulators.rankers.cards import OVERALL

TASKS = ("pctr", "pcvr")
CARD = {
    "AUC": "auc",
    "AUC of the truth": "auc_oracle",
    "AUC of the item mean": "auc_item_mean",
    "log-loss": "log_loss",
    "ECE": "ece",
    "sum(p)/sum(y)": "ratio",
    "rate": "rate",
    "rows": "num_rows",
}
WORTH = ("rankers@1", "truth@1", "rankers@5", "truth@5", "rankers@40", "truth@40")
"""What a list serves, and by whose value."""


def rankers_section(results: pd.DataFrame) -> Section:
    """Return the card of the rankers and what lists that know little of the user earn."""
    overall = under(results, group=OVERALL)
    rows = [
        [task, *interval_cells(under(overall, task=task), "rankers", CARD.values(), TEST)]
        for task in TASKS
    ]
    title, note = "Frozen rankers on held-out days", "Over the worlds used."
    parts = results[results["group"] != OVERALL]
    blocks: list[Block] = present(
        worth_table(results),
        Table(title, ["task", *CARD], filled(rows), note),
        *(group_table(parts, task, "rankers") for task in TASKS),
    )
    share = values_of(results, "rankers", "regime/share", TEST)
    if len(share):
        hacking = int((share <= 0).sum())
        text = (
            "On 600 held-out requests per world, taken when the world was made, the ad that the "
            f"rankers like best reaches {share.mean():.2f} of the way from the logging policy (0) "
            "to the truly best ad (1) under the hidden truth. "
        )
        text += (
            f"In {hacking} of {len(share)} worlds it falls below the logging policy: there, "
            "optimising the rankers is reward hacking."
            if hacking
            else "It beats the logging policy in every world used, so optimising the rankers can "
            "help; what is left to 1 is the rankers' error."
        )
        blocks.append(Paragraph(text))
    return Section("The rankers", blocks)


def worth_table(results: pd.DataFrame) -> Table | None:
    """Return what lists that know little of the user earn in the worlds used."""
    prefix = "gain/"
    metrics = results.loc[results["metric"].str.startswith(prefix), "metric"]
    lists = list(dict.fromkeys(metric.split("/")[1] for metric in metrics))
    rows: list[list[Cell]] = [
        [name, *interval_cells(results, "rankers", [f"{prefix}{name}/{w}" for w in WORTH], TEST)]
        for name in lists
    ]
    if not rows:
        return None
    return Table(
        "What the worlds pay for: shares of the gain, measured when they were made",
        ["list", *WORTH],
        rows,
        "constant: one order of ads for everybody; signature: one for users whom the same ads "
        "admit; cluster: one for each kind of user; logging: production's own ranking; "
        "favourite: the rankers'. @k: the best by the rankers of the first k.",
    )
