"""The scaling suite: its sizes, its held-out requests, its report."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.measure.sizes import non_embedding_parameters
from benchmarks.reports.power_law import fit_with_seeds
from benchmarks.run import main
from benchmarks.runs.results import read_results
from benchmarks.scaling.presets import PRESETS, SIZES, TO_1M
from benchmarks.scaling.report import law_figure, law_words
from benchmarks.scaling.train import heldout_batches, heldout_losses, train_size
from benchmarks.suite import load_suite
from gpr_rl.models import HHD
from gpr_rl.pretraining.trainer import StageConfig
from simulators.make import load_world
from simulators.world.history import DAY_S
from simulators.world.supervision import WindowBatches
from tests.benchmarks.command import settings_of

TINY = replace(
    PRESETS["smoke"],
    training=StageConfig(num_steps=6, warmup_steps=2),
    num_points=3,
    num_curve=20,
    num_final=100,
)


def test_sizes_are_what_their_names_say() -> None:
    world = load_world("tiny")
    wanted = {"10k": 1e4, "30k": 3e4, "100k": 1e5, "300k": 3e5, "1m": 1e6, "3m": 3e6, "10m": 1e7}
    assert set(SIZES) == set(wanted)
    found = {size: non_embedding_parameters(HHD(SIZES[size], world.spec)) for size in SIZES}
    for size, number in wanted.items():
        assert 0.85 * number < found[size] < 1.2 * number
    assert len(TO_1M) >= 5
    assert found[TO_1M[-1]] / found[TO_1M[0]] > 90
    assert found["10m"] / found["100k"] > 90


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_loss_is_taken_on_days_that_no_window_of_training_has(split: str) -> None:
    world = load_world("tiny")
    batches = heldout_batches(world, split, 100)
    assert sum(len(targets) for _, targets in batches) >= 100
    info = world.info
    first = info.num_log_days + (split == "test") * info.num_validation_days
    for tokens, targets in batches:
        assert targets.valid.all()
        last = (tokens.kind > 0).sum(1) - 1
        assert torch.equal(targets.position[:, 0], last)
    windows = WindowBatches(
        world, 2_000, 64, 1, 1, first_time=first * DAY_S, last_time=info.num_days * DAY_S
    ).windows(0)
    times = world.request_time[windows.request_id.flatten().numpy()]
    assert (times >= first * DAY_S).all()


def test_a_size_learns_and_its_curve_is_its_own() -> None:
    world = load_world("tiny")
    config = StageConfig(num_steps=30, warmup_steps=2, learning_rate=1e-2)
    curve, facts = train_size(world, "10k", 0, config, TINY, "test")
    assert list(curve) == [10, 20, 30]
    assert curve[30]["train_loss"] < curve[10]["train_loss"]
    again, _ = train_size(world, "10k", 0, config, TINY, "test")
    assert again == curve
    other, _ = train_size(world, "10k", 1, config, TINY, "test")
    assert other != curve
    assert facts["step_gflop"] > 0
    assert facts["final_loss"] == pytest.approx(curve[30]["heldout_loss"], abs=0.5)
    assert 0 < facts["final_loss_error"] < 0.5
    assert 0.5 * 8 * 12 < facts["examples_per_step"] <= 8 * 12
    assert facts["num_inner_parameters"] < facts["num_parameters"]


def test_the_held_out_loss_is_the_mean_over_requests() -> None:
    world = load_world("tiny")
    torch.manual_seed(0)
    model = HHD(SIZES["10k"], world.spec)
    batches = heldout_batches(world, "test", 40)
    one_by_one = []
    for tokens, targets in batches:
        for row in range(len(tokens)):
            context = model.window(tokens[row : row + 1], targets.position[row : row + 1])
            logits = model.window_logits(context, targets.codes[row : row + 1])[0, 0, 0]
            legal = targets.legal_mask[row, 0, 0]
            log_prob = logits.masked_fill(~legal, -torch.inf).log_softmax(-1)
            code = targets.codes[row, 0, 0]
            one_by_one.append(-float(log_prob.gather(1, code[:, None]).sum().detach()))
    np.testing.assert_allclose(heldout_losses(model, batches).numpy(), one_by_one, rtol=1e-5)


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([4.0, 4.1, 4.2, 4.3, 4.4], "do not fall with the size"),
        ([4.0, 4.0, 4.0, 4.0, 4.0], "do not fall with the size"),
        ([6.0, 4.0, 4.0, 4.0, 4.0], "do not determine the law"),
        ([4.1, 3.3, 2.7, 2.2, 1.8], ""),
    ],
)
def test_a_law_is_only_claimed_where_losses_have_one(losses: list[float], words: str) -> None:
    n = np.geomspace(1e4, 1e6, 5)
    loss = np.array(losses)[:, None] + np.array([[-1e-3, 0.0, 1e-3]]) * (len(set(losses)) > 1)
    fit = fit_with_seeds(n, loss, 0, with_floor=words != "")
    line = law_words({"law": fit}, 5, 3, 0.01)[0]
    if words:
        assert words in line
    else:
        assert line.endswith("parameters.")
    law_figure(n, loss, {"law": fit})


def test_a_run_plans_every_pair_once(tmp_path: Path) -> None:
    suite, settings = settings_of("scaling", "--out", tmp_path, "--seeds", 2)
    tasks = suite.make_tasks(settings)
    names = [task.name for task in tasks]
    assert len(set(names)) == len(names) == 1 + 5 + 10
    assert all(set(names).issuperset(task.needs) for task in tasks)


@pytest.mark.slow
def test_a_small_run_reports(tmp_path: Path) -> None:
    sizes = replace(TINY, learning_rates=(3e-3, 1e-3))
    suite = replace(load_suite("scaling"), presets={"smoke": sizes})
    out = tmp_path / "run"
    words = ["scaling", "--preset", "smoke", "--out", str(out), "--seeds", "3"]
    assert main([*words, "--methods", *TO_1M[:4]], {"scaling": suite}) == 0
    table = read_results(out / "results.parquet")
    assert set(TO_1M[:4]) == set(table["method"])
    page = (out / "report.html").read_text()
    for words in ("Power law", "Loss curves", "Learning rates", "exponent"):
        assert words in page
    assert (out / "figures" / "power-law.svg").is_file()
