"""Which rows a run has, and how dials are chosen before it."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest

from agents.methods import method_names, search_space
from agents.train_config import TrainConfig
from benchmarks.alignment.ablations import ABLATIONS
from benchmarks.alignment.page.curves import same_clock_table
from benchmarks.alignment.page.tables import add_normalised
from benchmarks.alignment.presets import (
    MARKETS,
    METHODS,
    PRESETS,
    SUPERVISED,
    WARM_ROWS,
    TuningPlan,
)
from benchmarks.alignment.rows import Row, labelled, rows_of
from benchmarks.alignment.setup import rows_frame
from benchmarks.alignment.suite import make_tasks
from benchmarks.alignment.tuning import ERROR, SCORE, trial_settings
from benchmarks.runs.results import complete, write_results
from benchmarks.runs.runner import check_graph
from benchmarks.runs.trials import choose, with_choice
from benchmarks.settings import Settings
from gpr_rl.checkpoint import CheckpointError
from simulators.markets import MARKETS as KNOWN_MARKETS


def settings(tmp_path: Path, preset: str = "smoke", **changes: object) -> Settings:
    given: dict[str, object] = {
        "suite": "alignment", "preset": preset, "methods": ("ppo", "hepo"), "seeds": (0, 1),
        "world": "tiny", "reward": (), "sizes": PRESETS[preset], "out": tmp_path,
    }  # fmt: skip
    return Settings(**{**given, **changes})  # type: ignore[arg-type]


def test_a_row_is_written_from_its_columns() -> None:
    columns = ["method", "ablation", "market"]
    rows = [("hepo", "", "base"), ("ppo", "kl_0", "base"), ("hepo", "arr", "drift"), ("x", "", "")]
    labels = ["hepo", "ppo+kl_0", "hepo+arr@drift", "x"]
    assert labelled(pd.DataFrame(rows, columns=columns))["method"].tolist() == labels
    row = Row(method="hepo", ablation="arr", market="drift")
    assert (str(row), row.conditions) == (labels[2], {"market": "drift", "ablation": "arr"})


def test_every_ablation_is_one_valid_change() -> None:
    base = TrainConfig(num_steps=150)
    for name, ablation in ABLATIONS.items():
        changed = dataclasses.replace(base, **ablation.training)  # type: ignore[arg-type]
        is_same = changed == base
        assert is_same == (ablation.start != "vaft" or ablation.rankers != "frozen"), name
        assert set(ablation.methods) <= set(METHODS), name
        assert set(ablation.markets) <= {"base", *MARKETS}, name
        budget = changed.num_requests * changed.num_candidates
        assert abs(budget / (base.num_requests * base.num_candidates) - 1) < 0.02, name
        assert ablation.summary


def test_suite_and_packages_agree_on_names() -> None:
    trained = [m for m in METHODS if m not in (*WARM_ROWS, *SUPERVISED)]
    assert set(trained) == set(method_names()) - {"ranks"}
    assert {"base", *MARKETS} == set(KNOWN_MARKETS)


def test_rows_get_the_seeds_that_the_preset_says(tmp_path: Path) -> None:
    wide = settings(
        tmp_path,
        preset="paper",
        methods=("vaft", "ppo", "hepo", "dpo", "sdpo"),
        seeds=tuple(range(10)),
        markets=("drift", "deep_tree"),
        ablations=("kl_0", "arr"),
    )
    rows = {str(row): seeds for row, seeds in rows_of(wide).items()}
    assert rows["ppo"] == tuple(range(10))
    assert rows["sdpo"] == rows["dpo@drift"] == rows["hepo+kl_0"] == (0, 1, 2)
    assert "dpo@deep_tree" not in rows  # a condition for HEPO and its nearest rivals
    assert {"hepo+arr", "hepo+arr@drift", "ppo@deep_tree"} <= set(rows)
    assert not {"sdpo@drift", "dpo+kl_0", "vaft", "hepo+arr@deep_tree"} & set(rows)


def test_tasks_form_a_graph_and_grow_without_changing(tmp_path: Path) -> None:
    few = make_tasks(settings(tmp_path))
    check_graph(few)
    more = make_tasks(
        settings(
            tmp_path,
            methods=("ppo", "hepo", "grpo"),
            seeds=(0, 1, 2),
            markets=("drift",),
            ablations=("kl_0",),
        )
    )
    check_graph(more)
    # What was there keeps its file, its function and its arguments.
    later = {task.name: task for task in more}
    for task in few:
        assert later[task.name] == task
    assert "hepo+kl_0, seed 0" in later


def test_tuning_comes_before_what_it_tunes(tmp_path: Path) -> None:
    sizes = dataclasses.replace(PRESETS["smoke"], tuning=TuningPlan(num_trials=3))
    tasks = make_tasks(settings(tmp_path, sizes=sizes, ablations=("kl_0",)))
    check_graph(tasks)
    names = [task.name for task in tasks]
    for method in ("ppo", "hepo"):
        trials = [name for name in names if name.startswith(f"tuning {method},")]
        assert len(trials) == 3 * 2  # as many for one as for the other
    final = next(task for task in tasks if task.name == "hepo+kl_0, seed 1")
    assert "choose hepo" in final.needs
    assert final.kwargs["settings"].tuned_file("hepo") == tmp_path / "tuning" / "hepo.json"
    tuning_seeds = {t.kwargs["seed"] for t in tasks if t.name.startswith("tuning")}
    assert not tuning_seeds & {0, 1}


def test_trials_start_with_the_defaults_and_never_repeat() -> None:
    sizes, few = (
        dataclasses.replace(PRESETS["smoke"], tuning=TuningPlan(num_trials=n)) for n in (325, 4)
    )
    for method in ("hepo", "ppo", "dpo", "raft"):
        trials = trial_settings(method, sizes)
        assert trials[0] == {}
        drawn = [tuple(sorted(t.items())) for t in trials[1:]]
        assert len(set(drawn)) == 324
        for trial in trials[1:]:
            assert set(trial) == {*search_space(method), "num_requests"}
            assert all(trial[name] in values for name, values in search_space(method).items())
            assert trial["num_candidates"] * trial["num_requests"] == 32 * 8  # the same budget
        assert trial_settings(method, few) == trials[:4]


def test_the_best_mean_over_the_tuning_seeds_is_chosen(tmp_path: Path) -> None:
    scores = [[0.3, 0.5], [0.9, None], [0.45, 0.45], [0.4, 0.5]]  # the second failed once
    parts: list[list[Path]] = []
    for trial, row in enumerate(scores):
        parts.append([])
        for seed, score in enumerate(row):
            path = tmp_path / f"{trial}-{seed}.parquet"
            metrics = {} if score is None else {SCORE: score, ERROR: 0.3 + 0.1 * seed}
            of_trial = {"market": "base", "trial": trial + 1}
            write_results(path, rows_frame("ppo", seed, 60, "tuning", metrics, **of_trial))
            parts[-1].append(path)
    sizes = dataclasses.replace(PRESETS["smoke"], tuning=TuningPlan(num_trials=4))
    output = tmp_path / "tuning" / "ppo.json"
    trials = trial_settings("ppo", sizes)
    choose(settings=trials, parts=parts, metrics=(SCORE,), sign=-1.0, error=ERROR, output=output)
    log = json.loads(output.read_text())
    assert log["chosen"] == trials[2]  # .45 comes before an equal mean
    assert log["trials"][1] == {
        "settings": trials[1], "scores": [0.9], "score": None, "means": [None],
    }  # fmt: skip
    assert log["trials"][2]["error"] == pytest.approx(0.25)  # sqrt(.3^2 + .4^2) / 2
    training = with_choice(sizes.training, output)
    assert training.learning_rate == trials[2]["learning_rate"]
    assert training.num_steps == sizes.training.num_steps
    assert with_choice(sizes.training, None) is sizes.training
    output.write_text("{")
    with pytest.raises(CheckpointError, match=r"ppo\.json"):
        with_choice(sizes.training, output)


def frame(rows: list[tuple[str, str, int, int, str, str, float]]) -> pd.DataFrame:
    columns = ["method", "market", "seed", "step", "split", "metric", "value"]
    return complete(pd.DataFrame(rows, columns=columns).assign(suite="alignment"), "by hand")


def test_final_values_are_normalised_inside_a_market_and_seed() -> None:
    rows = []
    for method, market, seed, low, high, mean in (
        ("ppo", "base", 0, 0.0, 10.0, 5.0), ("grpo", "base", 0, -10.0, 8.0, 5.0),
        ("ppo", "base", 1, 0.0, 1.0, 0.5), ("ppo", "drift", 0, 0.0, 100.0, 25.0),
    ):  # fmt: skip
        for metric, value in (
            ("pool_min", low), ("pool_max", high),
            ("avg_final_value", mean), ("max_final_value", high),
        ):  # fmt: skip
            rows.append((method, market, seed, 5, "test", metric, value))
    final = add_normalised(frame(rows))
    found = final[final["metric"] == "avg_final_value_normalised"]
    assert found.set_index(["method", "market", "seed"])["value"].to_dict() == {
        ("ppo", "base", 0): 0.75, ("grpo", "base", 0): 0.75, ("ppo", "base", 1): 0.5,
        ("ppo", "drift", 0): 0.25,
    }  # fmt: skip


def test_the_same_wall_clock_is_the_fastest_methods() -> None:
    rows = []
    for method, seconds in (("fast", 1.0), ("slow", 2.0)):
        for seed in (0, 1):
            for step in (0, 1, 2, 3, 4):
                rows.append((method, "", seed, step, "validation", "train_s", seconds * step))
                share = step / 10 + seed / 100
                rows.append((method, "", seed, step, "validation", "proxy_share_expected", share))
    table = same_clock_table(frame(rows), ["fast", "slow"])
    assert table is not None
    (fast, slow) = table.rows
    assert fast[:3] == ["fast", 4.0, 4.0]
    assert slow[:3] == ["slow", 2.0, 4.0]
    assert fast[3].value == pytest.approx(0.405)  # type: ignore[union-attr]
    assert slow[3].value == pytest.approx(0.205)  # type: ignore[union-attr]
