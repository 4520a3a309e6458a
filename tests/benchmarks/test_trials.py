"""Choices of a tuning: which trial wins, how it is kept, and what a report says of it."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.reports.trials import rate_table
from benchmarks.runs.trials import read_trials, tune_rate, with_choice, write_choice
from gpr_rl.checkpoint import CheckpointError


@dataclass(frozen=True)
class Config:
    learning_rate: float = 1.0
    num_steps: int = 7


def trained(config: Config) -> float:
    """Return a loss that is least at 0.3, and diverges from 2 on."""
    if config.learning_rate > 2:
        raise FloatingPointError
    return math.nan if config.learning_rate == 2 else abs(config.learning_rate - 0.3)


def test_the_least_cost_is_chosen_and_ties_go_to_the_first(tmp_path: Path) -> None:
    output = tmp_path / "tuning" / "x.json"
    scores = [0.5, None, 0.25, 0.25]
    trials = [{"settings": {"a": place}, "score": score} for place, score in enumerate(scores)]
    write_choice(output, trials, lambda trial: trial["score"])
    assert json.loads(output.read_text()) == {"chosen": {"a": 2}, "trials": trials}
    write_choice(output, trials, lambda trial: -trial["score"])
    assert read_trials(output)["chosen"] == {"a": 0}
    write_choice(output, trials[1:2], lambda trial: trial["score"])
    assert read_trials(output)["chosen"] == {"a": 1}  # nothing has a score: the first


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_diverged_rate_has_no_score(tmp_path: Path, sign: float) -> None:
    output = tmp_path / "x.json"
    tune_rate((3.0, 0.5, 2.0, 0.25), Config(), trained, output, sign=sign)
    log = read_trials(output)
    assert log["chosen"] == {"learning_rate": 0.25}
    found = [trial["score"] for trial in log["trials"]]
    assert found == [None, pytest.approx(0.2 * sign), None, pytest.approx(0.05 * sign)]
    assert with_choice(Config(), output) == Config(0.25, 7)
    assert with_choice(Config(), None) == Config(1.0, 7)
    output.write_text('{"chosen": {}}')
    with pytest.raises(CheckpointError, match=r"x\.json"):
        with_choice(Config(), output)


def test_a_table_says_what_each_rate_came_to(tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    tune_rate((2.0, 0.1), Config(), trained, path)
    table = rate_table({"base": path, "popularity": None}, "row", "loss of each", "A note.")
    assert table is not None
    assert table.columns == ["row", "chosen", "loss of each"]
    assert table.rows == [["base", "0.1", "2: diverged, 0.1: 0.200"]]
    assert rate_table({"popularity": None}, "row", "loss of each", "") is None
