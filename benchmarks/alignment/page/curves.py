"""How the methods came to where they are, per evaluation and second, and whether they settled."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import pandas as pd

from agents.train_config import TrainConfig
from benchmarks.alignment.page.tables import VIEWS
from benchmarks.reports.blocks import Block, Bullets, Cell, Figure, Section, Table, present
from benchmarks.reports.figures import learning_curves
from benchmarks.reports.statistics import bootstrap, interquartile_mean
from benchmarks.runs.results import BOOTSTRAP_SEED, without_conditions

CURVES = {
    "proxy_share_expected": "share of the gain, rankers",
    "truth_share_expected": "share of the gain, truth",
    "proxy_share_served_5": "share of the gain served of 5, rankers",
    "truth_share_served_5": "share of the gain served of 5, truth",
    "hacking_gap_expected": "reward-hacking gap",
}
SAME_CLOCK = {
    **VIEWS,
    "served@5, rankers": "proxy_share_served_5",
    "served@5, truth": "truth_share_served_5",
}
"""Columns and metrics of the comparison at equal seconds."""
SETTLED = {
    "expected value under the rankers": "proxy_share_expected",
    "value served of 5 under the rankers": "proxy_share_served_5",
    "value served of 5 under the truth": "truth_share_served_5",
}
"""What the order of the methods is compared on before the end of the curves, and at it."""
STILL_RISING = 0.02
"""A gain after three quarters, in shares of the gain, that says a curve has not ended."""


def curves_section(results: pd.DataFrame, trained: Sequence[str], training: TrainConfig) -> Section:
    """Return the curves on validation requests, and whether the methods' order had settled."""
    lines = partial(learning_curves, results, methods=trained, split="validation")
    evaluations: dict[str, Any] = {
        "x_label": "ranker evaluations (thousands)",
        "steps_to_x": training.num_requests * training.num_candidates / 1_000,
    }
    validated = set(results.loc[results["split"] == "validation", "metric"])
    blocks: list[Block] = [
        Figure(
            f"curve_{name}",
            f"Validation requests of a held-out day: {label}.",
            lines(name, label=label, **evaluations),
        )
        for name, label in CURVES.items()
        if name in validated
    ]
    proxy = VIEWS["rankers"]
    drawn = lines(proxy, label=CURVES[proxy], x_label="seconds of training", x_metric="train_s")
    blocks.append(Figure("curve_seconds", "The same over the seconds of training.", drawn))
    settled = settled_words(results, trained)
    return Section(
        "Learning curves",
        present(
            Bullets(settled) if settled else None,
            *blocks,
            same_clock_table(results, trained),
        ),
    )


def settled_words(results: pd.DataFrame, methods: Sequence[str]) -> list[str]:
    """Return where the methods' order at three quarters of the steps is not that at the end.

    The points are those of the learning curves; the last one at or before three quarters counts.
    """
    words = []
    for measure, metric in SETTLED.items():
        found = late_changes(results, methods, metric)
        if found is None:
            continue
        text = f"The {measure}, at step {found.before} and at step {found.end}: "
        text += (
            f"{', '.join(found.swapped)} change places, so their order is not settled."
            if found.swapped
            else "the order of the methods is the same."
        )
        if found.rising:
            rising = ", ".join(found.rising)
            text += f" Still rising by more than {STILL_RISING:g}: {rising}."
        words.append(text)
    return words


def unsettled_words(results: pd.DataFrame, methods: Sequence[str]) -> str:
    """Return what to say beside a ranking that was another at three quarters of the steps."""
    changes = [late_changes(results, methods, metric) for metric in SETTLED.values()]
    found = [change for change in changes if change is not None and change.swapped]
    if not found:
        return ""
    names = ", ".join(dict.fromkeys(pair for change in found for pair in change.swapped))
    before, end = found[0].before, found[0].end
    return f"The order is not settled: {names} change places between steps {before} and {end}."


@dataclass(frozen=True)
class LateChanges:
    """How the methods moved between two points of their curves."""

    before: int
    end: int
    """Steps."""
    swapped: list[str]
    """Pairs whose order changed."""
    rising: list[str]


def late_changes(results: pd.DataFrame, methods: Sequence[str], metric: str) -> LateChanges | None:
    """Compare the last point up to three quarters of the steps with the end; None without one."""
    curves = results[(results["split"] == "validation") & results["method"].isin(methods)]
    points = without_conditions(curves[curves["metric"] == metric])
    if points.empty:
        return None
    end = int(points["step"].max())
    before = max((int(step) for step in points["step"] if step <= 0.75 * end), default=0)
    if not before:
        return None
    earlier, last = (_means(points, step, methods) for step in (before, end))
    common = [m for m in methods if m in earlier and m in last]
    swapped = [
        f"`{first}` and `{second}`"
        for first, second in combinations(common, 2)
        if (earlier[first] - earlier[second]) * (last[first] - last[second]) < 0
    ]
    rising = [f"`{m}`" for m in common if last[m] - earlier[m] > STILL_RISING]
    return LateChanges(before, end, swapped, rising)


def _means(points: pd.DataFrame, step: int, methods: Sequence[str]) -> dict[str, float]:
    """Return each method's interquartile mean over seeds at a step."""
    at = points[points["step"] == step]
    return {
        method: float(interquartile_mean(own["value"].to_numpy()))
        for method in methods
        if len(own := at[at["method"] == method])
    }


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
    shown = {name: metric for name, metric in SAME_CLOCK.items() if metric in wide}
    rows: list[list[Cell]] = []
    for method in methods:
        own = last[last["method"] == method]
        if own.empty:
            continue
        cells: list[Cell] = [method, float(own["step"].median()), float(own["train_s"].median())]
        for metric in shown.values():
            values = own[metric].dropna().to_numpy()
            cells.append(bootstrap(values, BOOTSTRAP_SEED) if len(values) else None)
        rows.append(cells)
    return Table(
        "At the same wall-clock: where each method stood when the fastest had finished",
        ["method", "steps", "seconds", *shown],
        rows,
        "Shares of the gain on validation requests, expected where nothing is said, at the last "
        "point of each curve within the fastest method's training time of that seed; steps and "
        "seconds are medians. At equal ranker evaluations the methods stand in the tables above.",
    )
