"""Whether curves settled, why methods end where they do, and how sure tuning is, by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.alignment.page.curves import settled_words, unsettled_words
from benchmarks.alignment.page.how import fairness_words
from benchmarks.alignment.page.report import spread_words
from benchmarks.alignment.page.tuning import tuning_section
from benchmarks.alignment.page.why import at_the_end, critic_pairs, critic_table, why_section
from benchmarks.alignment.presets import PRESETS, TuningPlan
from benchmarks.reports.blocks import Figure, Paragraph, Table
from benchmarks.settings import Settings
from tests.benchmarks.reports.frames import frame, rows_of

SERVED = "truth_share_served_5"


def curve(method: str, values: dict[int, float]) -> pd.DataFrame:
    return pd.concat(
        [frame({(method, SERVED): v}, split="validation", step=n) for n, v in values.items()]
    )


def test_methods_that_change_places_late_have_not_settled() -> None:
    found = pd.concat(
        [
            curve("ppo", {0: 0.1, 50: 0.2, 75: 0.30, 100: 0.31}),
            curve("rspo", {0: 0.1, 50: 0.4, 75: 0.29, 100: 0.35}),
            curve("dpo", {0: 0.1, 50: 0.9, 75: 0.10, 100: 0.10}),
        ]
    )
    assert settled_words(found, ["ppo", "rspo", "dpo"]) == [
        "The value served of 5 under the truth, at step 75 and at step 100: `ppo` and `rspo` "
        "change places, so their order is not settled. Still rising by more than 0.02: `rspo`."
    ]
    assert settled_words(found, ["ppo", "dpo"]) == [
        "The value served of 5 under the truth, at step 75 and at step 100: the order of the "
        "methods is the same."
    ]
    assert settled_words(curve("ppo", {0: 0.1, 100: 0.2}), ["ppo"]) == []  # nothing in between
    assert unsettled_words(found, ["ppo", "rspo", "dpo"]) == (
        "The order is not settled: `ppo` and `rspo` change places between steps 75 and 100."
    )
    assert unsettled_words(found, ["ppo", "dpo"]) == ""


def by_level(
    method: str, metric: str, step: int, values: tuple[float, ...], seeds: int = 3
) -> pd.DataFrame:
    return pd.concat(
        [
            frame({(method, metric): v}, num_seeds=seeds, split="train", step=step, level=level)
            for level, v in enumerate(values, 1)
        ]
    )


def test_the_end_of_training_is_its_last_quarter() -> None:
    found = pd.concat(
        [
            by_level("hepo", "gradient", step, values)
            for step, values in ((1, (9, 9)), (2, (9, 9)), (3, (9, 9)), (4, (1, 3)))
        ]
    )
    wide = at_the_end(found, "gradient")
    assert wide.loc[("hepo", 0)].to_dict() == {1: 1, 2: 3}


def test_a_figure_shows_each_levels_share_of_the_gradient() -> None:
    found = pd.concat(
        [by_level("hepo", "gradient", 1, (1, 3)), by_level("ppo", "gradient", 1, (2, 2))]
    )
    section = why_section(found, ["hepo", "ppo"], 40, "truth")
    assert section is not None
    figure = section.blocks[0]
    assert isinstance(figure, Figure)
    (axes,) = figure.canvas.axes
    drawn = {
        str(line.get_label()): [float(x) for x in line.get_xdata()]
        for line in axes.lines
        if line.get_marker() == "o"
    }
    assert drawn == {"level 1": [0.25, 0.5], "level 2": [0.75, 0.5]}
    assert why_section(found.iloc[:0], ["hepo"], 40, "truth") is None


def test_requests_of_equal_candidates_are_shown_where_there_are_any() -> None:
    def blocks(share: float) -> list[object]:
        found = frame({("ppo", "equal_share"): share}, split="train", step=1)
        section = why_section(found, ["ppo"], 40, "truth")
        assert section is not None
        return list(section.blocks)

    (figure,) = blocks(0.25)
    assert isinstance(figure, Figure)
    (text,) = blocks(0.0)
    assert isinstance(text, Paragraph)
    assert text.text == "No request had candidates that all earn the same."


def test_what_a_list_adds_to_its_first_ad() -> None:
    served = {
        ("vaft", "truth_share_served_1"): 0.1, ("vaft", "truth_share_served"): 0.5,
        ("rspo", "truth_share_served_1"): 0.4, ("rspo", "truth_share_served"): 0.6,
        ("grpo", "truth_share_served_1"): 0.5, ("grpo", "truth_share_served"): 0.45,
        ("grpo", "proxy_share_served_1"): 0.9, ("grpo", "proxy_share_served"): 1.0,
    }  # fmt: skip
    section = why_section(frame(served), ["rspo", "grpo"], 40, "truth")
    assert section is not None
    text, figure = section.blocks
    assert isinstance(text, Paragraph)
    assert isinstance(figure, Figure)
    assert text.text.startswith(
        "What a list of 40 adds to its first ad, in shares of the gain: "
        "`vaft` +0.40, `rspo` +0.20, `grpo` -0.05."
    )
    (axes,) = figure.canvas.axes
    lines = {str(line.get_label()): line for line in axes.lines}
    assert list(lines["rspo"].get_xdata()) == [1, 40]
    assert list(lines["rspo"].get_ydata()) == pytest.approx([0.4, 0.6])


def test_a_better_critic_beside_a_better_policy() -> None:
    explains = pd.concat(
        [
            by_level("hepo", "explained_variance", 4, ((1, 2, 3, 4, 5), (5, 4, 3, 2, 1)), 5),
            by_level("ppo", "explained_variance", 4, ((1, 2), (1, 2)), 2),
        ]
    )
    earned = pd.DataFrame(
        {"hepo": [10.0, 20, 30, 40, 50], "ppo": [7.0, 8, float("nan"), 1, 1]}, index=range(5)
    )
    wide = at_the_end(explains, "explained_variance")
    assert critic_pairs(wide[1], earned)["ppo"] == [(1, 7), (2, 8)]
    table = critic_table(wide, earned)
    assert rows_of(table) == {
        "hepo": {"level 1": pytest.approx(1), "level 2": pytest.approx(-1)}
    }  # two seeds of ppo are too few


def test_a_collapse_is_said() -> None:
    ends = {
        ("ppo", "entropy"): 2.0, ("ppo", "proxy_personal_share"): (0.3, 0.4, 0.5),
        ("grpo", "entropy"): 0.2, ("grpo", "proxy_personal_share"): (-0.1, 0.2, 0.2),
        ("rspo", "entropy"): 3.0, ("rspo", "proxy_personal_share"): 0.5,
    }  # fmt: skip
    found = frame(ends)
    assert spread_words(found, ["ppo", "grpo"]) == (
        "Collapsed, with 0.3 nats of entropy over paths or less: `grpo` (0.20). Not clearly above "
        "0 is what these earn by whom they serve: `grpo`."
    )
    assert spread_words(found, ["rspo", "ppo"]) == (
        "No policy collapsed: the least entropy over paths, of `ppo`, is 2.00 nats. What every "
        "policy earns by whom it serves is clearly above 0."
    )
    assert spread_words(found, ["dpo"]) == ""


def settings(out: Path, **sizes: object) -> Settings:
    return Settings(
        suite="alignment", preset="smoke", methods=("ppo",), seeds=(0, 1, 2), world="tiny",
        reward=(), sizes=replace(PRESETS["smoke"], **sizes), out=out,
    )  # fmt: skip


def test_what_is_not_equal_is_said(tmp_path: Path) -> None:
    plain = PRESETS["smoke"].training
    even = settings(tmp_path, training=replace(plain, critic_warmup_steps=0))
    words = fairness_words(["ppo", "rspo"], even)
    assert words == [
        "One warm start per seed is shared by all methods. In RL each has as many steps and 2,560 "
        "ranker evaluations.",  # 10 x 32 x 8
        "They meet the same requests and random streams.",
        "The critic, which only HEPO and PPO use, is trained in the warm start on 10,240 ranker "
        "evaluations. These come on top of their budget.",  # 10 x 64 x 16
        "All methods may make 20 policy updates; a step ends early where a policy has moved far "
        "(`kl_stop`).",
    ]
    warm = fairness_words(
        ["ppo"], settings(tmp_path, training=replace(plain, critic_warmup_steps=2))
    )
    assert warm[-1].startswith("In the first 2 of 10 steps they train it alone")
    folder = tmp_path / "tuning"
    folder.mkdir()
    chosen = {"num_candidates": 4, "num_requests": 64, "num_epochs": 4}
    (folder / "rspo.json").write_text(json.dumps({"chosen": chosen, "trials": []}))
    (folder / "ppo.json").write_text(json.dumps({"chosen": {}, "trials": []}))
    tuned = replace(even, sizes=replace(even.sizes, tuning=TuningPlan(num_trials=2)))
    words = fairness_words(["ppo", "rspo"], tuned)
    assert words[1].startswith("Tuning gave some more candidates for fewer requests")
    assert not [text for text in words if "policy updates" in text]
    distilled = fairness_words(["ppo"], replace(even, methods=("distilled_x10", "ppo")))
    assert "best paths of 6,400 requests" in distilled[-1]  # 10 times 10 steps of 64


def test_tuning_says_how_sure_a_choice_is(tmp_path: Path) -> None:
    def trial(score: float | None, error: float, **of: float) -> dict[str, object]:
        return {"settings": of, "scores": [score], "score": score, "error": error}

    folder = tmp_path / "tuning"
    folder.mkdir()
    clear = [trial(0.5, 0.03), trial(0.4, 0.03, clip=0.1), trial(0.6, 0.03, clip=0.3)]
    tie = [trial(0.5, 0.03), trial(0.55, 0.03, clip=0.1), trial(None, 0.0, clip=0.3)]
    for name, trials, chosen in (("ppo", clear, clear[2]), ("grpo", tie, tie[1])):
        log = {"chosen": chosen["settings"], "trials": trials}
        (folder / f"{name}.json").write_text(json.dumps(log))
    section = tuning_section(settings(tmp_path, tuning=TuningPlan(num_trials=3)))
    assert section is not None
    _, sure, table = section.blocks
    assert isinstance(sure, Paragraph)
    assert isinstance(table, Table)
    assert "its defaults and 2 draws" in section.blocks[0].text
    # .6 - .5 > 2 sqrt(2) .03, and .55 - .5 is less
    assert "by more than two standard errors for 1 of 2 methods" in sure.text
    rows = rows_of(table)
    assert list(rows["ppo"].values()) == [324, 3, 3, 0.5, 0.6, 0.5, 0.03, "clip 0.3"]
    assert list(rows["grpo"].values()) == [324, 3, 2, 0.5, 0.55, 0.5, 0.03, "clip 0.1"]
    section = tuning_section(settings(tmp_path, tuning=TuningPlan(num_trials=1)))
    assert section is not None
    assert len(section.blocks) == 2
    assert "1 trial of 150 steps" in section.blocks[0].text
    assert "its defaults alone" in section.blocks[0].text


def test_only_what_differs_from_the_defaults_counts_as_chosen(tmp_path: Path) -> None:
    folder = tmp_path / "tuning"
    folder.mkdir()
    for name, chosen in (
        ("raft", {"learning_rate": 0.001, "raft_num_best": 1, "kl_penalty": 0.5}),
        ("exp_sft", {"exp_temperature": 3}),
    ):
        trial = {"settings": chosen, "scores": [0.5], "score": 0.5, "error": 0.1}
        (folder / f"{name}.json").write_text(json.dumps({"chosen": chosen, "trials": [trial]}))
    section = tuning_section(settings(tmp_path, tuning=TuningPlan(num_trials=2)))
    assert section is not None
    rows = rows_of(section.blocks[-1])
    assert rows["raft"]["chosen"] == "kl_penalty 0.5"
    assert rows["exp_sft"]["chosen"] == "exp_temperature 3"
    assert rows["exp_sft"]["space"] == 5


def test_a_run_without_any_gradient_has_a_report() -> None:
    found = pd.concat(
        [by_level("ppo", "gradient", 1, (0, 0)), by_level("grpo", "gradient", 1, (1, 3))]
    )
    section = why_section(found, ["ppo", "grpo"], 40, "truth")
    assert section is not None
    (axes,) = section.blocks[0].canvas.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["grpo"]
    nothing = by_level("ppo", "gradient", 1, (0, 0))
    assert why_section(nothing, ["ppo"], 40, "truth") is None
