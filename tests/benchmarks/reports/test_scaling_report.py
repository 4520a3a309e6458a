"""The scaling report: sizes, comparisons and laws worked out by hand."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from benchmarks.reports.blocks import Bullets, Figure, Table
from benchmarks.reports.power_law import fit_with_seeds
from benchmarks.reports.reading import reading
from benchmarks.scaling.presets import ScalingPreset
from benchmarks.scaling.report import (
    law_words,
    losses_of,
    make_report,
    size_table,
    step_differences,
)
from benchmarks.suite import Settings
from tests.benchmarks.reports.frames import frame, rows_of

SIZES = ("10k", "30k", "100k", "300k")
INFO = SimpleNamespace(name="tiny", source="by hand", simulated=(), notes=())
LOSS = {
    "10k": (4.0, 5.0, 6.0),
    "30k": (3.0, 4.0, 5.0),  # 1 less at every seed
    "100k": (3.5, 4.5, 5.5),  # half more
    "300k": (2.5, 4.5, 6.5),  # 1 less, the same and 1 more
}


def results() -> pd.DataFrame:
    """Return sizes of n, 2 n ... parameters for n = 1,000 k, with curves of two points."""
    values: dict[tuple[str, str], float | tuple[float, ...]] = {}
    curves = []
    for k, size in enumerate(SIZES, start=1):
        facts = {"num_inner_parameters": 1_000 * k, "num_parameters": 2_000 * k, "step_gflop": k}
        facts |= {"examples_per_s": 100 * k, "learning_rate": 0.001 * k}
        facts |= {"final_loss_error": 0.01 * k, "examples_per_step": 50}
        values |= {(size, name): value for name, value in facts.items()}
        values[size, "final_loss"] = LOSS[size]
        for step, more in ((10, 1.0), (20, 0.0)):
            train, held = {(size, "train_loss"): k + more}, {(size, "heldout_loss"): 3 * k + more}
            curves += [frame(train, split="train", step=step), frame(held, step=step)]
    return pd.concat([frame(values, step=20), *curves])


def test_every_fact_stands_in_its_own_column_at_the_last_step() -> None:
    rows = rows_of(size_table(results(), SIZES))
    assert list(rows) == list(SIZES)
    assert rows["30k"] == {
        "width x HSD layers": "24 x 2",
        "parameters": "2,000",
        "with tables": "4,000",
        "GFLOP per step": "2.0",
        "examples / s": "200",
        "learning rate": "0.002",
        "held-out loss": 4,
        "training loss": 2,  # not the 3 of step 10
    }


def test_every_size_is_compared_with_the_next_smaller_one() -> None:
    first, second, third, trust = reading(step_differences(results(), SIZES))
    words = "The held-out loss, against"
    assert first == f"{words} `10k`: improved by `30k` (-1 [-1, -1])."
    assert second == f"{words} `30k`: worsened by `100k` (+0.5 [0.5, 0.5])."
    assert third == f"{words} `100k`: no clear difference for `300k` (+0 [-1, 1])."
    assert "3 comparisons were made" in trust


def test_a_law_is_fitted_to_the_seeds_that_all_sizes_have() -> None:
    found = results()
    n, loss = losses_of(found, SIZES)
    assert n.tolist() == [1_000, 2_000, 3_000, 4_000]
    assert loss.tolist() == [list(LOSS[size]) for size in SIZES]
    is_gone = (found["method"] == "30k") & (found["seed"] == 1) & (found["metric"] == "final_loss")
    _, loss = losses_of(found[~is_gone], SIZES)
    assert loss.tolist() == [[LOSS[size][0], LOSS[size][2]] for size in SIZES]


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_an_exact_law_is_told_with_its_unit(num_seeds: int) -> None:
    """Loss 2 (n / 1e5)^-0.5: between 1e4 and 1e6 the geometric mean of sizes is 1e5."""
    n = np.geomspace(1e4, 1e6, 5)
    loss = np.tile((2.0 * (n / 1e5) ** -0.5)[:, None], num_seeds)
    law = fit_with_seeds(n, loss, 0, with_floor=False)
    said = law_words({"plain": law}, 5, num_seeds, 0.25)
    if num_seeds == 1:
        assert said[0] == "plain: exponent 0.500; one seed gives no interval."
        assert said[1].endswith("Outside of the sizes that were trained the curves are a guess.")
        return
    assert said[0] == "plain: exponent 0.500 [0.500, 0.500]; 2.000 nats at 100,000 parameters."
    assert said[1].startswith("The intervals are of 5 means over 3 seeds")
    assert "is 0.250 nats" in said[1]
    assert said[2].startswith("Intervals are nominal 95 % bootstrap intervals over 3 seeds")


def test_the_report_puts_it_together(tmp_path: Path) -> None:
    choice = tmp_path / "10k.json"
    trials = [
        {"settings": {"learning_rate": 0.01}, "score": None},
        {"settings": {"learning_rate": 0.003}, "score": 4.5},
    ]
    choice.write_text(json.dumps({"chosen": {"learning_rate": 0.003}, "trials": trials}))
    settings = Settings(
        suite="scaling", preset="smoke", methods=SIZES, seeds=(0, 1, 2), world="tiny", reward=(),
        sizes=ScalingPreset(), out=tmp_path,
    )  # fmt: skip
    made = make_report(results(), settings, INFO, {"10k": choice, "30k": None})
    assert made.lead.startswith("4 sizes, 3 seeds. World `tiny` (by hand). Simulated: nothing.")
    titles = ["Loss curves (as GPR Fig. 5)", "Power law", "Tuning", "How to read it"]
    assert [section.title for section in made.sections] == titles
    train, held = made.sections[0].blocks
    assert isinstance(train, Figure)
    assert isinstance(held, Figure)
    for figure, factor in ((train, 1), (held, 3)):
        (axes,) = figure.canvas.axes
        lines = {line.get_label(): line for line in axes.lines}
        assert list(lines["30k"].get_xdata()) == [500, 1_000]  # steps of 50 examples
        assert list(lines["30k"].get_ydata()) == [2 * factor + 1, 2 * factor]
    law = made.sections[1].blocks[1]
    assert isinstance(law, Bullets)
    assert [line.partition(":")[0] for line in law.items[:2]] == [
        "power law with a floor",
        "power law without one",
    ]
    assert "is 0.040 nats" in law.items[2]  # the largest size's
    tuning = made.sections[2].blocks[0]
    assert isinstance(tuning, Table)
    assert tuning.rows == [["10k", "0.003", "0.01: diverged, 0.003: 4.500"]]
    few = make_report(results(), Settings(**{**vars(settings), "methods": SIZES[:3]}), INFO, {})
    assert [section.title for section in few.sections] == [titles[0], titles[3]]
