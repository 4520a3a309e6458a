"""The figure of the environment suite: speed against batch, by interface."""

from collections.abc import Sequence
from dataclasses import astuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.environment.presets import (
    SINGLE,
    TARGET_BATCH,
    TARGET_SINGLE,
    TARGET_VECTOR,
    VECTOR,
)
from benchmarks.environment.values import batches, figure
from benchmarks.reports.figures import COLOURS, plain_axes

_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


def speed_figure(results: pd.DataFrame, methods: Sequence[str], threads: int) -> Figure:
    """Return code choices per second over B, on log axes, a line per interface that has rows."""
    canvas, axes = plain_axes(0.6)
    lines = [(m, "rankers", m, "-") for m in methods]
    if VECTOR in methods:
        lines.append((VECTOR, "free", f"{VECTOR}, no rankers", "--"))
    for number, (method, mode, label, style) in enumerate(lines):
        found = {
            batch: astuple(point)
            for batch in batches(results, method)
            if (point := figure(results, method, mode=mode, threads=threads, batch=batch))
        }
        if not found:
            continue
        y, low, high = np.array(list(found.values())).T
        axes.errorbar(
            list(found),
            y,
            yerr=[y - low, high - y],
            color=COLOURS[methods.index(method) % len(COLOURS)],
            marker=_MARKS[number % len(_MARKS)],
            linestyle=style,
            linewidth=1.6,
            markersize=5,
            elinewidth=1.0,
            label=label,
        )
    asked = ((SINGLE, 1, TARGET_SINGLE), (VECTOR, TARGET_BATCH, TARGET_VECTOR))
    for method, batch, target in asked:
        if batch not in batches(results, method):
            continue
        axes.annotate(
            f"target {target:,.0f}",
            (batch, target),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color="#222222",
        )
        axes.plot([batch / 1.8, batch * 1.8], [target, target], ":", color="#222222", linewidth=1.6)
    axes.set_xscale("log", base=2)
    axes.set(yscale="log", xlabel="B, environments side by side", ylabel="code choices per second")
    shown = sorted({batch for method in methods for batch in batches(results, method)})
    axes.set_xticks(shown, [f"{batch:,}" for batch in shown])
    axes.minorticks_off()
    if shown:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    return canvas
