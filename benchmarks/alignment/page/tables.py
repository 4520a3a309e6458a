"""Tables of the alignment suite that every part of its report needs."""

from collections.abc import Sequence

import pandas as pd

from benchmarks.alignment.rows import labelled
from benchmarks.reports.blocks import Cell, Table
from benchmarks.reports.lookup import TEST, interval_of
from benchmarks.reports.reading import Difference, compare
from benchmarks.reports.significance import smallest_p_value
from benchmarks.runs.results import (
    complete,
    final_values,
    under,
)

WARM_START = "vaft"
REFERENCES = ("logging", "popularity", "item_mean", "constant", "signature", "cluster")
"""Production, and lists that know little or nothing of the user; above the policies."""
BOUNDS = ("vaft_reranked", "proxy_argmax", "best")
"""What the rankers make of the warm start's beam, and of all ads; the best ad by each measure."""
KINDS = ("expected", "greedy", "served")
VIEWS = {"rankers": "proxy_share_expected", "truth": "truth_share_expected"}
"""The two measures that comparisons are made on."""


def filled(rows: Sequence[list[Cell]]) -> list[list[Cell]]:
    """Return the rows that have any cell beside their names."""
    return [row for row in rows if any(cell is not None for cell in row[1:])]


def paired(named: pd.DataFrame, row: str, baseline: str, metric: str) -> Difference | None:
    """Return the seed-paired difference of two rows of `labelled` on a test metric."""
    return next(iter(compare(named, metric, metric, [row], baseline)), None)


SHORT_VERDICTS = {
    "improves": "better",
    "lowers": "worse",
    "worsens": "worse",
    "no clear difference": "same",
    "too few seeds": "too few seeds",
}


def verdict_table(differences: Sequence[Difference], title: str) -> Table:
    """Return a line per method: better, same or worse than the baseline, and how sure.

    `same` means that there is no clear difference (`Difference.verdict`), not that the two are
    equal.
    """
    rows: list[list[Cell]] = [
        [
            d.method,
            SHORT_VERDICTS[d.verdict],
            d.interval,
            d.chance,
            d.p_value,
            d.adjusted_p_value,
            d.num_seeds,
        ]
        for d in differences
    ]
    least = min((smallest_p_value(d.num_seeds) for d in differences), default=1.0)
    together = max((d.num_together for d in differences), default=1)
    note = (
        "same: the interval of the seed-paired differences holds 0, or the corrected p-value is "
        ".05 or more though it could be less. p: sign flips of the pairs, two-sided; with so few "
        f"seeds it can't be below {least:.2g}, and Holm's correction multiplies that by up to "
        f"{together}, the number of comparisons on this measure, those with rivals included."
    )
    columns = ["method", "verdict", "difference", "P(better)", "p", "p, Holm", "seeds"]
    return Table(title, columns, rows, note)


def add_normalised(results: pd.DataFrame) -> pd.DataFrame:
    """Return the final rows with avg and max final_value min-max normalised over all methods.

    As in GPR 4.3 the scale is the set of all candidates of all methods compared, here per seed and
    market. It is applied when the report is made, so adding a method changes no finished run.
    """
    final = final_values(results)
    pools = ("pool_min", "pool_max", "avg_final_value", "max_final_value")
    test = final[(final["split"] == "test") & final["metric"].isin(pools)]
    row = ["method", "ablation", "market", "seed"]
    wide = test.pivot(index=row, columns="metric", values="value").reset_index()
    if not {"pool_min", "pool_max"} <= set(wide.columns):
        return final
    group = wide.groupby(["market", "seed"])
    low, high = group["pool_min"].transform("min"), group["pool_max"].transform("max")
    parts = [final]
    for name in ("avg", "max"):
        value = (wide[f"{name}_final_value"] - low) / (high - low)
        frame = wide[row].assign(value=value).dropna()
        metric = f"{name}_final_value_normalised"
        frame = frame.assign(suite="alignment", step=0, split="test", metric=metric)
        parts.append(complete(frame, metric))
    return pd.concat(parts, ignore_index=True)


def market_table(
    results: pd.DataFrame, methods: Sequence[str], markets: Sequence[str], view: str
) -> Table:
    """Return the expected share of the gain of every method on every market."""
    on = {market: under(results, market=market) for market in markets}
    rows: list[list[Cell]] = [
        [method, *(interval_of(found, method, VIEWS[view], TEST) for found in on.values())]
        for method in methods
    ]
    return Table(
        f"Expected share of the gain on every market, {view}",
        ["method", *markets],
        filled(rows),
        "0 is the market's logging policy, 1 its best ad; the base market over the same seeds as "
        "the others would have another interval: columns don't share their seeds' number.",
    )


def time_table(results: pd.DataFrame) -> Table | None:
    """Return how the tasks' seconds divide, per method and in all."""
    spent = results[results["split"] == "time"]
    if spent.empty:
        return None
    named = labelled(spent)
    wide = named.pivot(index=["method", "seed"], columns="metric", values="value").fillna(0.0)
    names = ("model_s", "update_s", "evaluation_s", "decoding_s", "rankers_s", "requests_s")
    parts = [c for c in names if c in wide]
    counted = [c for c in parts if c != "requests_s"]
    rows: list[list[Cell]] = []
    groups = [(str(row), group) for row, group in wide.groupby("method", sort=False)]
    for method, group in [*groups, ("all", wide)]:
        total = float(group["total_s"].sum())
        share = group[parts].sum() / total
        rows.append(
            [method, total, *(float(share[part]) for part in parts), float(share[counted].sum())]
        )
    return Table(
        "Where the time goes",
        ["row", "seconds", *(part.removesuffix("_s") for part in parts), "tensor operations"],
        rows,
        "Shares of the tasks' seconds. model: encoding, logits and the reference's pass; update: "
        "forward, backward and optimizer, for the warm start all of pre-training with its input; "
        "rankers: with their inputs; evaluation: exact distributions and beams of the policy. "
        "tensor operations: all of these but the making of requests. Making worlds is not counted.",
    )
