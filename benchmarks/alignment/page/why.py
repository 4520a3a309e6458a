"""Why the methods end where they end: what each level learns from, and what a list adds."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from benchmarks.alignment.page.tables import filled
from benchmarks.evaluation import SERVED
from benchmarks.reports.blocks import Block, Cell, Figure, Paragraph, Section, Table, present
from benchmarks.reports.figures import interval_chart, learning_curves, line_chart, scatter_chart
from benchmarks.reports.lookup import TEST, interval_of, mean_of
from benchmarks.reports.statistics import Interval, bootstrap
from benchmarks.runs.results import BOOTSTRAP_SEED, seed_table, under, without_conditions

EXPLAINED = "explained_variance"
LAST_SHARE = 0.25
"""Of the steps, that what is said of the end of training is a mean over."""
GROUPS = {
    "equal_share": (
        "requests of equal candidates",
        "Requests whose candidates all earn the same: no advantage, and nothing to learn from.",
    ),
    "distinct_share": (
        "distinct ads per candidate",
        "Distinct ads among the candidates of a request.",
    ),
}
"""Metric to label and caption."""
MIN_POINTS = 5
"""Seeds that a rank correlation needs."""


def why_section(
    results: pd.DataFrame, trained: Sequence[str], list_size: int, side: str
) -> Section | None:
    """Return the figures on what training saw; `side` is `truth`, or `proxy` without one.

    None for runs that measured nothing of it.
    """
    train = results[(results["split"] == "train") & results["method"].isin(trained)]
    blocks = present(
        _by_level(train, trained, "gradient", "share of the gradient"),
        *_group_blocks(train, trained),
        _by_level(train, trained, "entropy", "nats"),
        *_list_blocks(results, trained, list_size, side),
        *_critic_blocks(results, trained, f"{side}_share_expected"),
    )
    return Section("Why", blocks) if blocks else None


def _group_blocks(train: pd.DataFrame, methods: Sequence[str]) -> list[Block]:
    """Return how much the candidates of a request differ, over the steps."""
    blocks: list[Block] = []
    for metric, (label, caption) in GROUPS.items():
        values = train.loc[train["metric"] == metric, "value"]
        if len(values) and metric == "equal_share" and not values.any():
            blocks.append(Paragraph("No request had candidates that all earn the same."))
        elif len(values):
            curves = learning_curves(train, metric, methods=methods, split="train", label=label)
            blocks.append(Figure(metric, caption, curves))
    return blocks


def at_the_end(train: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return (method, seed) by level: means over the last quarter of the steps."""
    own = train[(train["metric"] == metric) & (train["level"] > 0)]
    own = without_conditions(own.assign(level=0).assign(of_level=own["level"]))
    last = own[own["step"] > (1.0 - LAST_SHARE) * own["step"].max()]
    return last.pivot_table(index=["method", "seed"], columns="of_level", values="value")


def _by_level(
    train: pd.DataFrame, methods: Sequence[str], metric: str, label: str
) -> Figure | None:
    """Return a measure at every level, as shares of all levels' for gradients."""
    wide = at_the_end(train, metric)
    captions = {
        "gradient": "Where the gradient goes: each level's share of the norms at the logits, over "
        "the last quarter of the steps. Level 1 is the coarsest.",
        "entropy": "What is left to choose at each level over the last quarter of the steps.",
    }
    if metric == "gradient":  # there is none where every reward was the same
        wide = wide.div(wide.sum(axis=1), axis=0)
    wide = wide.dropna()
    if wide.empty:
        return None
    known = [m for m in methods if m in wide.index.get_level_values("method")]
    groups: dict[str, list[tuple[str, Interval]]] = {
        f"level {level}": [
            (method, bootstrap(wide.xs(method)[level].to_numpy(), BOOTSTRAP_SEED))
            for method in known
        ]
        for level in wide.columns
    }
    return Figure(f"{metric}_by_level", captions[metric], interval_chart(groups, label=label))


def _list_blocks(
    results: pd.DataFrame, methods: Sequence[str], list_size: int, side: str
) -> list[Block]:
    """Return what is served of the first k of a beam, and what the rest of the list adds."""
    lengths = {**{k: f"{side}_share_served_{k}" for k in SERVED}, list_size: f"{side}_share_served"}
    lines = {
        method: [(k, i) for k, m in lengths.items() if (i := interval_of(results, method, m, TEST))]
        for method in ("vaft", *methods)
    }
    lines = {method: points for method, points in lines.items() if len(points) > 1}
    if not lines:
        return []
    by = "hidden truth" if side == "truth" else "rankers"
    figure = Figure(
        "served_by_length",
        f"The best by the rankers of the first k of a beam, under the {by}: the policy's own first "
        "choice on the left, what a whole list holds on the right.",
        line_chart(lines, x_label="k, ads in the list", label="share of the gain", log_x=True),
    )
    return [Paragraph(list_words(results, methods, lengths)), figure]


def list_words(results: pd.DataFrame, methods: Sequence[str], lengths: Mapping[int, str]) -> str:
    """Return what the longest list adds to the first ad for every method, the most first."""
    first, last = min(lengths), max(lengths)
    added = {}
    for method in ("vaft", *methods):
        one, all_of = (mean_of(results, method, lengths[k], TEST) for k in (first, last))
        if one is not None and all_of is not None:
            added[method] = all_of - one
    said = ", ".join(f"`{m}` {x:+.2f}" for m, x in sorted(added.items(), key=lambda p: -p[1]))
    return f"What a list of {last} adds to its first ad, in shares of the gain: {said}."


def _critic_blocks(results: pd.DataFrame, methods: Sequence[str], outcome: str) -> list[Block]:
    """Return how much of the return each level of the critic explains."""
    explained = results[(results["metric"] == EXPLAINED) & results["method"].isin(methods)]
    explained = explained[explained["split"] == "train"]
    if explained.empty:
        return []
    levels = sorted(explained["level"].unique())
    curves = [
        Figure(
            f"{EXPLAINED}_{level}",
            f"Share of the return's variance that the critic explains at level {level}.",
            learning_curves(
                under(explained, level=level),
                EXPLAINED,
                methods=methods,
                split="train",
                label=f"explained variance, level {level}",
            ),
        )
        for level in levels
    ]
    text = (
        "`hepo` learns its coarse levels through the critic alone, so its result can be no better "
        "than the critic is there."
    )
    said = [Paragraph(text)] if "hepo" in methods else []
    return [*said, *curves, *_against_result(results, explained, outcome)]


def _against_result(results: pd.DataFrame, explained: pd.DataFrame, outcome: str) -> list[Block]:
    """Return what the critic explains against what its policy earns, by method and seed."""
    explains, earned = at_the_end(explained, EXPLAINED), seed_table(results, outcome)
    pairs = critic_pairs(explains.mean(axis=1), earned)
    if not pairs:
        return []
    chart = scatter_chart(
        pairs, x_label="explained variance, mean of levels", label="share of the gain, expected"
    )
    caption = (
        "What the critic explains in the last quarter of the steps, and what its policy earns."
    )
    table = critic_table(explains, earned)
    return [Figure("critic_and_result", caption, chart), *([table] if table.rows else [])]


def critic_pairs(explains: pd.Series, earned: pd.DataFrame) -> dict[str, list[tuple[float, float]]]:
    """Return per method its seeds' explained variance and what was earned.

    `explains` is by (method, seed), `earned` a table of seeds by method.
    """
    pairs: dict[str, list[tuple[float, float]]] = {}
    for (method, seed), share in explains.items():
        if method in earned and seed in earned.index:
            point = float(share), float(earned.loc[seed, method])
            if np.isfinite(point).all():
                pairs.setdefault(method, []).append(point)
    return pairs


def critic_table(explains: pd.DataFrame, earned: pd.DataFrame) -> Table:
    """Return whether, over a method's seeds, a better critic goes with a better policy."""
    columns = {f"level {level}": critic_pairs(explains[level], earned) for level in explains}
    methods = list(dict.fromkeys(name for pairs in columns.values() for name in pairs))
    rows: list[list[Cell]] = [
        [method, *(_rank_correlation(pairs.get(method, ())) for pairs in columns.values())]
        for method in methods
    ]
    return Table(
        "Does a better critic go with a better policy?",
        ["method", *columns],
        filled(rows),
        "Spearman's rank correlation over seeds of what the critic explains at a level with what "
        f"the policy earns; nothing for fewer than {MIN_POINTS} seeds. At ten seeds less than .65 "
        "either way is no clear relation.",
    )


def _rank_correlation(points: Sequence[tuple[float, float]]) -> float | None:
    if len(points) < MIN_POINTS:
        return None
    found = float(spearmanr(*zip(*points, strict=True)).statistic)
    return found if np.isfinite(found) else None
