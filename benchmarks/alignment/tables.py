"""Tables of the alignment suite that every part of its report needs."""

from collections.abc import Mapping, Sequence

import pandas as pd

from benchmarks.alignment.rows import labelled
from benchmarks.reports.blocks import Cell, Table
from benchmarks.reports.lookup import TEST, interval_cells, interval_of
from benchmarks.reports.reading import MIN_SEEDS, Difference, adjust, compare
from benchmarks.reports.significance import smallest_p_value
from benchmarks.reports.statistics import bootstrap
from benchmarks.runs.results import (
    BOOTSTRAP_SEED,
    complete,
    final_values,
    under,
    without_conditions,
)

WARM_START = "vaft"
REFERENCES = ("logging", "popularity", "item_mean", "constant", "signature", "cluster")
"""Production, and lists that know little or nothing of the user; above the policies."""
BOUNDS = ("vaft_reranked", "proxy_argmax", "best")
"""What the rankers make of the warm start's beam, and of all ads; the best ad by each measure."""
KINDS = ("expected", "greedy", "served")
VIEWS = {"rankers": "proxy_share_expected", "truth": "truth_share_expected"}
"""The two measures that comparisons are made on."""
WORTH = ("rankers@1", "truth@1", "rankers@5", "truth@5", "rankers@40", "truth@40")
"""What a list serves, and by whose value."""


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


def answer(final: pd.DataFrame, methods: Sequence[str], measures: Mapping[str, str]) -> str:
    """Return in words whether RL helped, who was best, and how sure that is.

    Args:
        final: The results.
        methods: What was trained by RL.
        measures: Metric to words. The first answers the question, the others follow it.
    """
    said: list[str] = []
    for metric, words in measures.items():
        found = adjust(compare(final, metric, words, methods, WARM_START))
        if not found:
            continue
        seeds = min(d.num_seeds for d in found)
        if any(not d.has_seeds for d in found):
            return f"Did RL help? With {seeds} seeds this run cannot tell: {MIN_SEEDS} are needed."
        said.append(_verdict_words(found, words, with_answer=not said))
        said.append(_best_words(final, found, metric, words))
    return " ".join(said)


def _verdict_words(found: Sequence[Difference], words: str, *, with_answer: bool) -> str:
    """Return which methods raised and lowered a measure, with a word for all before it."""
    names = {
        verdict: ", ".join(f"`{d.method}`" for d in found if d.verdict == verdict)
        for verdict in ("improves", "lowers", "no clear difference")
    }
    raised, lowered, unclear = names.values()
    parts = [f"{verb} with {of}" for verb, of in (("raised", raised), ("lowered", lowered)) if of]
    parts += [f"not clearly changed with {unclear}"] if unclear else []
    text = f"{words} was {'; '.join(parts)}."
    if not with_answer:
        return text[:1].upper() + text[1:]
    word = "In part" if raised and lowered else "Yes" if raised else "No" if lowered else ""
    word = "Not clearly" if not raised and unclear else word
    return f"Did RL help? {word}: {text}"


def _best_words(final: pd.DataFrame, found: Sequence[Difference], metric: str, words: str) -> str:
    """Return who was highest, by how much, and whether its lead over the next is clear."""
    best, *others = sorted(found, key=lambda d: -d.interval.value)

    def size(d: Difference) -> str:
        return f"{d.interval.value:+.2f} [{d.interval.low:.2f}, {d.interval.high:.2f}]"

    text = f"Highest was `{best.method}`, {size(best)} of the gain against the warm start"
    if not others:
        return f"{text}."
    (lead,) = compare(final, metric, words, [best.method], others[0].method)
    sure = "is clear" if lead.verdict == "improves" else "is not clear"
    return f"{text}; its lead over the next, `{lead.baseline}`, {sure} ({size(lead)})."


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


def same_clock_table(results: pd.DataFrame, methods: Sequence[str]) -> Table | None:
    """Return where every method stood when the fastest one had finished, per seed.

    The points are those of the learning curves, on validation requests: the last one whose training
    time does not exceed the fastest method's total.
    """
    curves = results[(results["split"] == "validation") & results["method"].isin(methods)]
    curves = without_conditions(curves)
    wide = curves.pivot(index=["method", "seed", "step"], columns="metric", values="value")
    if "train_s" not in wide.columns or wide.empty:
        return None
    wide = wide.reset_index()
    total = wide.groupby(["method", "seed"])["train_s"].max()
    limit = total.groupby("seed").min().rename("limit")
    wide = wide.join(limit, on="seed")
    reached = wide[wide["train_s"] <= wide["limit"] * (1 + 1e-9)]
    last = reached.sort_values("step").groupby(["method", "seed"]).tail(1)
    rows: list[list[Cell]] = []
    for method in methods:
        own = last[last["method"] == method]
        if own.empty:
            continue
        cells: list[Cell] = [method, float(own["step"].median()), float(own["train_s"].median())]
        for metric in VIEWS.values():
            values = own[metric].dropna().to_numpy() if metric in own else []
            cells.append(bootstrap(values, BOOTSTRAP_SEED) if len(values) else None)
        rows.append(cells)
    return Table(
        "At the same wall-clock: where each method stood when the fastest had finished",
        ["method", "steps", "seconds", *VIEWS],
        rows,
        "Expected share of the gain on validation requests, at the last point of each curve within "
        "the fastest method's training time of that seed; steps and seconds are medians.",
    )


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
        "constant: one order of ads for everybody; signature: one for users whom targeting can't "
        "tell apart; cluster: one for each kind of user; logging: production's own ranking; "
        "favourite: the rankers'. @k: the best by the rankers of the first k.",
    )
