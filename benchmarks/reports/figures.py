"""Figures of a report: curves over training, and intervals side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.reports.statistics import Interval, Profile, bootstrap, interquartile_mean
from benchmarks.runs.results import BOOTSTRAP_SEED, without_conditions

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8a8a8a")
"""Okabe and Ito's palette: told apart by colour-blind readers and in print."""
WIDTH_IN = 7.2


def learning_curves(
    results: pd.DataFrame,
    metric: str,
    *,
    methods: Sequence[str],
    split: str,
    label: str,
    x_label: str = "training step",
    steps_to_x: float = 1.0,
    x_metric: str | None = None,
) -> Figure:
    """Return a line per method: interquartile mean over seeds with its 95 % interval as a band.

    Rows without conditions count; methods without rows are left out. Steps are multiplied by
    `steps_to_x`, e.g. ranker evaluations per step. `x_metric` is drawn along in their place, e.g.
    seconds of training: its interquartile mean over seeds at each step.
    """
    figure, axes = plain_axes(0.55)
    rows = without_conditions(results[results["split"] == split])
    names = [metric] if x_metric is None else [metric, x_metric]
    for number, method in enumerate(methods):
        own = rows[rows["method"] == method]
        wide = own.pivot(index=["step", "seed"], columns="metric", values="value")
        if not set(names) <= set(wide.columns):
            continue
        points = wide[names].dropna().groupby("step")
        found = [bootstrap(part[metric].to_numpy(), BOOTSTRAP_SEED) for _, part in points]
        x = np.array(list(points.groups), dtype=float) * steps_to_x
        if x_metric is not None:
            x = np.array([interquartile_mean(part[x_metric].to_numpy()) for _, part in points])
        banded_line(axes, number, method, x, *np.array([astuple(f) for f in found]).T)
    _finish_lines(axes, x_label, label)
    return figure


def line_chart(
    lines: Mapping[str, Sequence[tuple[float, Interval]]],
    *,
    x_label: str,
    label: str,
    log_x: bool = False,
) -> Figure:
    """Return a line per name through its (x, interval) points, the intervals as a band."""
    figure, axes = plain_axes(0.5)
    for number, (name, points) in enumerate(lines.items()):
        x = np.array([at for at, _ in points], dtype=float)
        banded_line(axes, number, name, x, *np.array([astuple(i) for _, i in points]).T)
    if log_x:
        axes.set_xscale("log")
        ticks = sorted({at for points in lines.values() for at, _ in points})
        axes.set_xticks(ticks, [f"{at:g}" for at in ticks], minor=False)
        axes.minorticks_off()
    _finish_lines(axes, x_label, label)
    return figure


def scatter_chart(
    groups: Mapping[str, Sequence[tuple[float, float]]], *, x_label: str, label: str
) -> Figure:
    """Return the (x, y) points of every name in its own colour."""
    figure, axes = plain_axes(0.5)
    for number, (name, points) in enumerate(groups.items()):
        x, y = np.array(points, dtype=float).T
        axes.plot(x, y, "o", color=COLOURS[number % len(COLOURS)], label=name, markersize=5.5)
    _finish_lines(axes, x_label, label)
    return figure


def profile_chart(profiles: Mapping[str, Profile], *, label: str) -> Figure:
    """Return performance profiles: the share of runs above each threshold, a line per method."""
    figure, axes = plain_axes(0.5)
    for number, (method, profile) in enumerate(profiles.items()):
        banded_line(axes, number, method, *astuple(profile))
    axes.set_ylim(0.0, 1.02)
    _finish_lines(axes, label, "share of runs above")
    return figure


def banded_line(
    axes: Axes,
    number: int,
    name: str,
    x: np.ndarray,
    value: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> None:
    """Draw the number-th line with its interval as a band; all arrays [N]."""
    colour = COLOURS[number % len(COLOURS)]
    style = "-" if number < len(COLOURS) else "--"
    axes.plot(x, value, style, color=colour, label=name, linewidth=1.8)
    axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)


def _finish_lines(axes: Axes, x_label: str, label: str) -> None:
    """Name the axes and the lines."""
    axes.set(xlabel=x_label, ylabel=label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)


def interval_chart(
    groups: Mapping[str, Sequence[tuple[str, Interval]]],
    *,
    label: str,
    reference: float | None = None,
) -> Figure:
    """Return points with 95 % intervals, one row per name, side by side for a few measures.

    `groups` has per measure (shown in the legend) its (row name, interval) pairs; all measures list
    the same names. A `reference` is drawn as a line, e.g. 0 for differences.
    """
    names = [name for name, _ in next(iter(groups.values()))]
    figure, axes = plain_axes(max(0.2, (0.24 * len(names) + 0.6) / WIDTH_IN))
    rows = np.arange(len(names))[::-1]
    for number, (measure, entries) in enumerate(groups.items()):
        shift = 0.22 * ((len(groups) - 1) / 2 - number)
        value, low, high = np.array([astuple(interval) for _, interval in entries]).T
        colour = COLOURS[number % len(COLOURS)]
        axes.hlines(rows + shift, low, high, color=colour, linewidth=2.2, alpha=0.55)
        axes.plot(value, rows + shift, "o", color=colour, markersize=5.5, label=measure)
    if reference is not None:
        axes.axvline(reference, color="#555555", linewidth=1.0, zorder=0)
    axes.set_yticks(rows, names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel(label)
    axes.grid(visible=False, axis="y")
    if len(groups) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(groups), frameon=False)
    return figure


def plain_axes(height_share: float) -> tuple[Figure, Axes]:
    """Return a figure of the report's width, as high as this share of it, and its axes."""
    figure = Figure(figsize=(WIDTH_IN, WIDTH_IN * height_share))
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes
