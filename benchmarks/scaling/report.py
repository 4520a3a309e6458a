"""What the scaling suite says: loss curves, the power law and how sure it is."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from benchmarks.reports.blocks import Block, Bullets, Cell, Figure, Section, SuiteReport, Table
from benchmarks.reports.figures import banded_line, learning_curves, plain_axes
from benchmarks.reports.lookup import interval_cells, mean_of
from benchmarks.reports.power_law import (
    MAX_EXPONENT,
    MIN_EXPONENT,
    MIN_SIZES,
    Fit,
    fit_with_seeds,
)
from benchmarks.reports.reading import Difference, compare, coverage_note
from benchmarks.reports.trials import rate_table
from benchmarks.runs.results import BOOTSTRAP_SEED, final_values, seed_table
from benchmarks.scaling.presets import METHODS, SIZES, ScalingPreset
from benchmarks.settings import Settings
from benchmarks.worlds import world_words
from simulators.world.info import WorldInfo

LOSS, CURVE = "final_loss", "heldout_loss"
"""After training, and, of fewer requests, during it."""
_FACTS = {
    "parameters": ("num_inner_parameters", "{:,.0f}"),
    "with tables": ("num_parameters", "{:,.0f}"),
    "GFLOP per step": ("step_gflop", "{:.1f}"),
    "examples / s": ("examples_per_s", "{:,.0f}"),
    "learning rate": ("learning_rate", "{:g}"),
}
"""What a size is and costs: heading to metric and how that is written."""
_DETERMINED = 10.0
"""An exponent whose interval spans more than this factor is called unknown."""


def size_table(results: pd.DataFrame, sizes: Sequence[str]) -> Table:
    """Return what each size is, what it costs and where it ends."""
    final = final_values(results)
    rows: list[list[Cell]] = []
    for size in sizes:
        config = SIZES[size]
        texts = [form.format(mean_of(final, size, metric)) for metric, form in _FACTS.values()]
        losses = interval_cells(final, size, (LOSS, "train_loss"))
        rows.append([size, f"{config.dim} x {config.num_hsd_layers}", *texts, *losses])
    return Table(
        "Loss by size (nats per path)",
        ["size", "width x HSD layers", *_FACTS, "held-out loss", "training loss"],
        rows,
        "Parameters are those outside of embedding tables and output matrices. The training loss "
        "is the mean over the last part of the curve. One thread.",
    )


def losses_of(results: pd.DataFrame, sizes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return parameters [S] and held-out losses [S, R] of the seeds that all sizes have."""
    table = seed_table(results, LOSS, "test")[list(sizes)].dropna()
    n = np.array([mean_of(results, size, "num_inner_parameters") for size in sizes])
    return n, table.to_numpy().T


def law_figure(n: np.ndarray, loss: np.ndarray, fits: Mapping[str, Fit]) -> Canvas:
    """Return losses over parameters, with the fitted laws and their bands."""
    figure, axes = plain_axes(0.55)
    grid = np.geomspace(n.min() / 1.3, n.max() * 1.3, 100)
    for number, (name, fit) in enumerate(fits.items()):
        banded_line(axes, number, name, grid, fit.law(grid), *fit.band(grid))
    for row, losses in zip(n, loss, strict=True):
        axes.plot([row] * len(losses), losses, "o", color="#000000", markersize=4, alpha=0.6)
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="parameters outside of tables", ylabel="held-out loss (nats per path)")
    axes.yaxis.set_major_formatter("{x:.2f}")
    axes.yaxis.set_minor_formatter("{x:.2f}")
    room = 0.15 * (loss.max() - loss.min()) or 0.01 * loss.max()
    axes.set_ylim(loss.min() - room, loss.max() + room)  # a band may leave far above or below
    axes.legend(frameon=False)
    return figure


def _doubt(fit: Fit) -> str:
    """Return what a reader must know before believing a fit, as a further sentence or nothing."""
    if fit.law.scale <= 0 or fit.law.exponent <= MIN_EXPONENT:
        return " These losses do not fall with the size: there is no law in them."
    low, high = fit.interval("exponent")
    if high > _DETERMINED * low or low <= MIN_EXPONENT or high >= 0.99 * MAX_EXPONENT:
        return " The interval is so wide that these losses do not determine the law."
    return ""


def law_words(
    fits: Mapping[str, Fit], num_sizes: int, num_seeds: int, sampling_error: float
) -> list[str]:
    """Return the fitted laws in words, with intervals."""
    lines = []
    for name, fit in fits.items():
        if num_seeds < 2:
            lines.append(f"{name}: exponent {fit.law.exponent:.3f}; one seed gives no interval.")
            continue
        low, high = fit.interval("exponent")
        text = f"{name}: exponent {fit.law.exponent:.3f} [{low:.3f}, {high:.3f}]"
        at = f"{fit.law.scale:.3f} nats{{}} at {fit.law.unit:,.0f} parameters"
        if fit.law.floor > 0 or fit.interval("floor")[1] > 0:
            low, high = fit.interval("floor")
            text += f", floor {fit.law.floor:.2f} [{low:.2f}, {high:.2f}] nats"
            at = at.format(" above it")
        lines.append(f"{text}; {at.format('')}.{_doubt(fit)}")
    error = (
        "the one sample of held-out requests is the same for all sizes and seeds; the standard "
        f"error of a mean over it is {sampling_error:.3f} nats, less for a difference of two sizes."
    )
    guess = "Outside of the sizes that were trained the curves are a guess."
    if num_seeds < 2:
        return [*lines, f"{error.capitalize()} {guess}"]
    lines.append(
        f"The intervals are of {num_sizes} means over {num_seeds} seeds whose seeds were resampled;"
        f" they don't say how wrong the form of the law is. They leave out that {error} {guess}"
    )
    return [*lines, coverage_note(num_seeds)]


def step_differences(results: pd.DataFrame, sizes: Sequence[str]) -> list[Difference]:
    """Return the declared comparisons: every size against the next smaller one."""
    words, found = "the held-out loss", []
    for smaller, larger in pairwise(sizes):
        found += compare(results, LOSS, words, [larger], smaller, higher_is_better=False)
    return found


def make_report(
    results: pd.DataFrame,
    settings: Settings[ScalingPreset],
    info: WorldInfo,
    tuned: Mapping[str, Path | None],
) -> SuiteReport:
    """Return the report."""
    sizes = [size for size in METHODS if size in settings.methods]
    examples = mean_of(results, sizes[0], "examples_per_step") or 0.0
    num_requests = settings.sizes.training.num_steps * examples
    curves: list[Block] = [
        Figure(
            f"curves-{split}",
            f"{words} over training, interquartile mean over seeds with its interval",
            learning_curves(
                results,
                metric,
                methods=sizes,
                split=split,
                label=f"{words} (nats per path)",
                x_label="examples",
                steps_to_x=examples,
            ),
        )
        for metric, split, words in (
            ("train_loss", "train", "Training loss"),
            (CURVE, "test", "Held-out loss"),
        )
    ]
    sections = [Section("Loss curves (as GPR Fig. 5)", curves)]
    if len(sizes) >= MIN_SIZES:
        n, loss = losses_of(results, sizes)
        error = mean_of(results, sizes[-1], "final_loss_error") or 0.0
        fits = {
            "power law with a floor": fit_with_seeds(n, loss, BOOTSTRAP_SEED),
            "power law without one": fit_with_seeds(n, loss, BOOTSTRAP_SEED, with_floor=False),
        }
        blocks: list[Block] = [
            Figure("power-law", "Held-out loss over parameters", law_figure(n, loss, fits)),
            Bullets(law_words(fits, len(sizes), loss.shape[1], error)),
        ]
        sections.append(Section("Power law", blocks))
    note = "Where the largest or smallest rate was chosen, one beyond it might be better."
    choices = rate_table(tuned, "size", "loss on the first held-out day of each", note)
    if choices is not None:
        sections.append(Section("Tuning", [choices]))
    facts = [
        "Sizes are HHDs with hybrid attention, token-aware norms and feed-forward networks, "
        "thinking tokens and one head; width and depth grow together.",
        f"All see {num_requests:,.0f} requests with their next ad (about; a short history fills "
        "fewer positions of a window) in the same order: the law is that of models at this budget "
        "of data, not of models trained to the end. A larger model that has not yet used what it "
        "could learn looks worse here than it is.",
        "The paper shows training curves of six sizes from 0.02 to 2 billion dense parameters on "
        "private data and fits nothing.",
    ]
    sections.append(Section("How to read it", [Bullets(facts)]))
    return SuiteReport(
        title="Scaling (GPR Fig. 5)",
        lead=f"{len(sizes)} sizes, {len(settings.seeds)} seeds. {world_words(info)}"
        + " ".join(info.notes),
        sections=sections,
        tables=[size_table(results, sizes)],
        differences=step_differences(results, sizes),
    )
