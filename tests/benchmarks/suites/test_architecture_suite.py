"""The architecture suite: its rows, its protocol, and a small run."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.architecture.models import build, matched_config
from benchmarks.architecture.presets import (
    BASE,
    CONTROLS,
    FULL,
    PARTS,
    PRESETS,
    row_config,
)
from benchmarks.architecture.protocol import make_protocol
from benchmarks.architecture.report import main_table
from benchmarks.architecture.suite import METHODS
from benchmarks.architecture.train import evaluate, train
from benchmarks.measure.flops import training_flops
from benchmarks.measure.sizes import non_embedding_parameters
from benchmarks.run import RunArgs, main, make_settings
from benchmarks.runs.results import read_results, tidy
from benchmarks.suite import SUITES, load_suite
from gpr_rl.models import HHD, HHDConfig
from gpr_rl.pretraining.trainer import StageConfig
from gpr_rl.schema import Action
from simulators.make import load_world

TINY = replace(
    PRESETS["smoke"],
    training=StageConfig(num_steps=3, warmup_steps=1, validate_every=3),
    speed_batch=1,
    speed_repeats=1,
)


def test_a_parts_row_differs_from_the_base_in_that_part_alone() -> None:
    base = row_config(BASE, HHDConfig())
    assert not base.hybrid_attention
    assert base.num_mtp_heads == 1
    for part, changes in PARTS.items():
        found = row_config(part, HHDConfig())
        assert found == replace(base, **changes)  # type: ignore[arg-type]
    full = row_config(FULL, HHDConfig())
    assert full.hybrid_attention
    assert full.num_recursions
    assert full.knowledge_dim
    assert full.num_refining_steps


@pytest.mark.parametrize("row", METHODS)
def test_every_row_trains_and_ranks(row: str) -> None:
    world = load_world("tiny")
    shown = make_protocol("time", world)
    studied = build(row, shown, TINY, seed=0)
    again = build(row, shown, TINY, seed=0)
    for one, other in zip(studied.module.parameters(), again.module.parameters(), strict=True):
        assert torch.equal(one, other)
    if row != "popularity":
        assert training_flops(partial(studied.loss, 0)) > 0
        result = train(studied, shown, TINY.training, TINY, row)
        assert result["num_steps"] == 3
    ids = world.request_ids("test")[:5]
    ranked = studied.rank(ids)
    assert ranked.shape == (5, TINY.list_size)
    for line in ranked.tolist():
        found = [ad for ad in line if ad >= 0]
        assert len(set(found)) == len(found) > 0
    for value in studied.statistics().values():
        assert value == value


@pytest.mark.parametrize("row", [BASE, "sasrec"])
def test_a_diverged_model_at_validation_counts_as_diverged(row: str) -> None:
    shown = make_protocol("time", load_world("tiny"))
    studied = build(row, shown, TINY, seed=0)
    config = replace(TINY.training, learning_rate=1e30, validate_every=1, warmup_steps=0)
    with pytest.raises(FloatingPointError):
        train(studied, shown, config, TINY, row)


def test_an_error_at_validation_that_is_none_of_divergence_stays_one() -> None:
    shown = make_protocol("time", load_world("tiny"))

    def refuse(request_id: torch.Tensor) -> torch.Tensor:
        raise ValueError("no such request")

    studied = replace(build(BASE, shown, TINY, seed=0), rank=refuse)
    with pytest.raises(ValueError, match="no such request"):
        train(studied, shown, TINY.training, TINY, BASE)


def test_a_list_as_long_as_the_catalogue_says_so() -> None:
    shown = make_protocol("time", load_world("tiny"))
    num_ads = shown.world.num_ads
    values = {f"hitr_{num_ads}": 1.0, "recall_10": 0.2, "num_requests": 9.0, "num_ads": num_ads}
    results = tidy("architecture", BASE, 0, values)
    assert f"HitR@{num_ads} can't tell rows apart" in main_table(results, [BASE], num_ads).note
    assert "can't tell" not in main_table(results, [BASE], num_ads - 1).note


def test_the_evaluators_row_trains_the_bases_policy() -> None:
    shown = make_protocol("time", load_world("tiny"))
    policies = []
    for row in (BASE, "hte"):
        studied = build(row, shown, TINY, seed=0)
        train(studied, shown, TINY.training, TINY, row)
        assert isinstance(studied.module, HHD)
        policies.append(studied.module.policy_parameters())
    for base, guided in zip(*policies, strict=True):
        assert torch.equal(base, guided)


@pytest.mark.parametrize("row", CONTROLS)
def test_a_control_is_just_no_smaller(row: str) -> None:
    world = load_world("tiny")
    model = HHD(row_config(row, HHDConfig()), world.spec)
    wanted = non_embedding_parameters(model, critic=row == "full")
    config = matched_config(row, world, PRESETS["quick"])
    narrower = replace(config, ffn_multiple=config.ffn_multiple - 1 / config.dim)
    found, less = (non_embedding_parameters(HHD(size, world.spec)) for size in (config, narrower))
    assert less < wanted <= found < 1.01 * wanted
    assert found > non_embedding_parameters(HHD(row_config(BASE, HHDConfig()), world.spec))


def test_the_critic_counts_where_it_is_trained() -> None:
    shown = make_protocol("time", load_world("tiny"))
    base, guided = (build(row, shown, TINY, seed=0) for row in (BASE, "hte"))
    assert isinstance(guided.module, HHD)
    critic = sum(p.numel() for p in guided.module.hte_parameters())
    assert guided.num_parameters - base.num_parameters == critic > 0
    tables = critic - (guided.num_inner_parameters - base.num_inner_parameters)
    assert 0 < tables < critic


def test_what_is_ranked_are_clicked_ads_of_held_out_days() -> None:
    world = load_world("tiny")
    ids = make_protocol("time", world).held_out("test", 10)
    assert (world.request_action[ids] >= int(Action.CLICK)).all()
    assert set(ids.tolist()) <= set(world.request_ids("test").tolist())
    perfect = evaluate(lambda part: world.request_ad[part][:, None], world, ids, 1)
    assert perfect == {"hitr_1": 1.0, "recall_10": 1.0, "ndcg_10": 1.0}
    never = evaluate(lambda part: torch.full((len(part), 5), -1), world, ids, 5)
    assert never == {"hitr_5": 0.0, "recall_10": 0.0, "ndcg_10": 0.0}


def test_a_run_plans_every_pair_once(tmp_path: Path) -> None:
    suite, settings = make_settings(RunArgs(suite="architecture", out=tmp_path, seeds=2), SUITES)
    tasks = suite.make_tasks(settings)
    names = [task.name for task in tasks]
    assert len(set(names)) == len(names)
    assert all(set(names).issuperset(task.needs) for task in tasks)
    assert sum(name.startswith("sasrec, seed") for name in names) == 2


@pytest.mark.slow
def test_a_small_run_reports(tmp_path: Path) -> None:
    sizes = replace(TINY, learning_rates=(3e-3, 1e-3))
    suite = replace(load_suite("architecture", SUITES), presets={"smoke": sizes})
    out = tmp_path / "run"
    words = ["architecture", "--preset", "smoke", "--out", str(out), "--seeds", "3"]
    words += ["--methods", "sasrec", "base", "mtp", "full", "control_mtp"]
    assert main(words, {"architecture": suite}) == 0
    table = read_results(out / "results.parquet")
    assert {"sasrec", "base", "mtp", "full", "control_mtp", "machine"} == set(table["method"])
    page = (out / "report.html").read_text()
    assert "Ranking the whole catalogue" in page
    assert "Learning rates" in page
    assert "Speed of the parts" in page
    assert "LazyAR over plain" in page
