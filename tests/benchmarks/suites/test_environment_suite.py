import re
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from benchmarks.environment import memory as environment_memory
from benchmarks.environment import suite as environment
from benchmarks.environment.memory import catalogue_figures
from benchmarks.environment.pieces import EPISODE, PIECES
from benchmarks.environment.play import (
    Played,
    draw_code,
    draw_codes,
    make_environment,
    make_play,
    time_plays,
)
from benchmarks.environment.presets import METHODS, PRESETS, SINGLES, EnvironmentPreset
from benchmarks.environment.report import left_out
from benchmarks.environment.suite import (
    batches_of,
    finish,
    make_tasks,
    measure_catalogue,
    measure_machine,
    measure_memory,
    measure_method,
    measure_pieces,
)
from benchmarks.environment.worlds import CatalogueSize, random_catalogue, without_rankers
from benchmarks.measure.memory import PeakMemory, can_measure
from benchmarks.measure.timing import torch_threads
from benchmarks.reports.page import write_report
from benchmarks.run import main
from benchmarks.runs.results import check_results, empty_results, under
from benchmarks.runs.runner import check_graph
from benchmarks.settings import Settings
from benchmarks.suite import SUITES, suite_flags
from simulators.world import World

LITTLE = EnvironmentPreset(
    world="tiny",
    num_seeds=1,
    batches=(1, 3),
    max_sync_batch=3,
    max_day_batch=3,
    day_requests=2,
    threads=(1,),
    num_repeats=1,
    repeat_s=0.0,
    limit_s=0.0,
    memory_batches=(3,),
    catalogues=(CatalogueSize(num_ads=40, num_codes=4, num_users=5, num_requests=64),),
)
TIME = r"(?:_s|_ms|_per_s)$"


def _settings(out: Path, sizes: EnvironmentPreset = LITTLE, **changes) -> Settings:
    asked = {
        "suite": "environment",
        "preset": "smoke",
        "methods": METHODS,
        "seeds": (3, 4),
        "world": "tiny",
        "reward": (),
        "sizes": sizes,
        "out": out,
    }
    return Settings(**(asked | changes))


@given(arrays(np.int8, (7, 5), elements=st.integers(0, 1)), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_drawn_codes_are_legal(mask: np.ndarray, seed: int) -> None:
    mask[:, 2] |= mask.sum(1) == 0
    rng = np.random.default_rng(seed)
    drawn = draw_codes(mask, rng)
    assert mask[np.arange(7), drawn].all()
    assert all(mask[row][draw_code(mask[row], rng)] for row in range(7))


def test_drawn_codes_are_uniform() -> None:
    mask = np.array([0, 1, 1, 0, 1], dtype=np.int8)
    rng = np.random.default_rng(0)
    many = np.bincount(draw_codes(np.tile(mask, (30_000, 1)), rng), minlength=5)
    single = np.bincount([draw_code(mask, rng) for _ in range(6_000)], minlength=5)
    # a count of Binomial(n, 1/3) has a standard deviation of sqrt(n * 2/9); 4 of them
    assert np.abs(many[mask == 1] - 10_000).max() < 4 * (30_000 * 2 / 9) ** 0.5
    assert np.abs(single[mask == 1] - 2_000).max() < 4 * (6_000 * 2 / 9) ** 0.5
    assert many[mask == 0].sum() == single[mask == 0].sum() == 0


@pytest.mark.parametrize("method", METHODS)
def test_every_interface_plays_whole_episodes(world: World, method: str) -> None:
    batch = 1 if method in SINGLES else 3
    env = make_environment(method, world, batch, day_requests=2)
    played = make_play(method, env, world.spec.num_levels, seed=0)()
    per_row = world.spec.num_levels * (2 if "day" in method else 1)
    assert played.num_choices == batch * per_row
    assert played.step_s > 0
    assert (played.draw_s > 0) == (method != "torchrl_rollout")


def test_rates_of_plays_come_from_what_they_took() -> None:
    played = Played(num_choices=10, reset_s=1.0, step_s=4.0, draw_s=2.0)
    sizes = replace(LITTLE, num_repeats=3, limit_s=60.0)
    with_reset = time_plays({"x": lambda: played}, sizes, with_reset=True)["x"]
    without = time_plays({"x": lambda: played}, sizes, with_reset=False)["x"]
    assert with_reset.choices_per_s == [2.0, 2.0, 2.0]
    assert without.choices_per_s == [2.5, 2.5, 2.5]
    assert (without.draw_s, without.reset_s) == (0.2, 1.0)
    calls: list[int] = []

    def play() -> Played:
        calls.append(1)
        return played

    least = time_plays({"x": play}, sizes, with_reset=True, least=500)["x"]
    assert least == with_reset
    assert len(calls) >= 3 * 500


def test_plays_are_timed_in_turn() -> None:
    order: list[str] = []

    def play(name: str) -> Played:
        order.append(name)
        return Played(num_choices=1, step_s=1.0)

    sizes = replace(LITTLE, num_repeats=3, limit_s=60.0)
    plays = {name: lambda name=name: play(name) for name in "ab"}
    time_plays(plays, sizes, with_reset=True)
    assert "".join(order).endswith("ababab")


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_free_rankers_change_nothing_but_the_rankers(world: World) -> None:
    free = without_rankers(world)
    ends = {}
    for name, played in (("own", world), ("free", free)):
        env = gymnasium.make_vec("envs:gpr_rl/AdRequest-v0", num_envs=4, world=played)
        observation, info = env.reset(seed=5)
        for _ in range(world.spec.num_levels):
            observation, reward, *_, info = env.step(observation["action_mask"].argmax(1))
        ends[name] = observation, reward, info
    assert np.array_equal(ends["own"][2]["ad_id"], ends["free"][2]["ad_id"])
    assert np.array_equal(ends["own"][0]["preference"], ends["free"][0]["preference"])
    assert (ends["free"][2]["pctr"] == 0.5).all()
    assert (ends["free"][2]["pcvr"] == 0.5).all()
    assert not np.array_equal(ends["own"][1], ends["free"][1])
    assert world.rankers is not free.rankers
    assert callable(world.features)


def test_random_catalogue_can_be_played() -> None:
    size = CatalogueSize(num_ads=50, num_codes=4, num_users=6, num_requests=80)
    world, again = (random_catalogue(size, seed=1) for _ in range(2))
    assert world.num_ads == 50
    assert world.spec.num_codes == 4
    assert world.spec.num_levels == 3
    assert torch.equal(world.codes, again.codes)
    assert not torch.equal(world.codes, random_catalogue(size, seed=2).codes)
    ids = world.request_ids("train")
    assert len(ids) > 0
    assert world.eligible(ids).any(-1).all()
    outcome = world.outcome(ids[:4], torch.arange(8).view(4, 2), exact=True)
    assert ((outcome.pctr > 0) & (outcome.pctr < 1)).all()
    assert outcome.pctr.unique().numel() > 4
    env = make_environment("vector", world, 3, day_requests=2)
    assert make_play("vector", env, 3, seed=0)().num_choices == 9


def _in_process(call, **kwargs):
    return call(**kwargs)


def test_measured_rows_are_tidy_and_all_of_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "matrix_rate", lambda: 50.0)
    where = {"world": "tiny", "world_seed": 0, "seed": 3, "sizes": LITTLE}
    tables = [measure_method(method=m, reward=("ecpm",), **where) for m in METHODS]
    tables += [measure_pieces(**where), measure_machine(seed=3, sizes=LITTLE)]
    rows = check_results(pd.concat(tables), "rows")
    assert set(rows["method"]) == {*METHODS, "machine"}
    assert rows["metric"].str.contains(TIME).all()
    assert (rows["value"][~rows["metric"].str.contains("part|draw|reset")] > 0).all()
    at = {"threads": 1, "batch": 3}
    sync, vector = (rows[rows["method"] == name] for name in ("sync_vector", "vector"))
    found = under(sync, mode="rankers", **at).set_index("metric")["value"]
    assert found["native_over_sync_choices_per_s"] == pytest.approx(
        found["native_choices_per_s"] / found["choices_per_s"]
    )
    free = under(vector, mode="free", **at)
    free = free[free["part"] == ""].set_index("metric")["value"]
    assert free["requests_per_s"] == pytest.approx(free["choices_per_s"] / 3)
    taken = under(vector[vector["metric"] == "part_ms"], **at).set_index("part")["value"]
    assert sum(taken[name] for name in PIECES) == pytest.approx(taken[EPISODE])


def test_a_whole_run_makes_a_report(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "in_fresh_process", _in_process)
    monkeypatch.setattr(environment, "matrix_rate", lambda: 50.0)
    run = _settings(tmp_path, methods=("vector", "sync_vector"), seeds=(0,))
    tables = []
    for task in make_tasks(run):
        name = task.function.rpartition(":")[2]
        if hasattr(environment, name):
            table = getattr(environment, name)(**task.kwargs)
            tables += [] if table is None else [table]
        assert all(file.is_file() for file in task.files)
    results = check_results(pd.concat(tables), "rows")
    report = finish(run, results)
    page = write_report(tmp_path, report, run.to_json(), {}).read_text()
    assert "interquartile mean" not in page
    assert "confidence interval" in page
    assert "missed by" in page or "met" in page
    memory = pd.read_csv(tmp_path / "memory.csv")
    if can_measure():
        assert set(memory["interface"]) == {"vector", "sync_vector"}
        assert set(memory["what"]) == {"world", "make", "run"}
        assert "Memory, MiB" in page
    assert (tmp_path / "figures" / "choices_per_s.svg").is_file()


def test_tasks_run_one_after_the_other(tmp_path: Path) -> None:
    tasks = make_tasks(_settings(tmp_path, PRESETS["quick"]))
    check_graph(tasks)
    assert [task.needs for task in tasks] == [(), *((task.name,) for task in tasks[:-1])]
    named = [task.name for task in tasks]
    assert named[0] == "world, seed 3"  # all rounds share the first one's world
    assert all(task.kwargs.get("world_seed", 3) == 3 for task in tasks)
    assert {f"{m}, seed {s}" for m in METHODS for s in (3, 4)} < set(named)
    assert named.count("1000000 ads") == 1
    only = make_tasks(_settings(tmp_path, methods=("day",), seeds=(0,)))
    assert [task.name for task in only] == ["world, seed 0", "machine, seed 0", "day, seed 0",
                                            "memory"]  # fmt: skip


def test_batches_of_interfaces() -> None:
    sizes = PRESETS["quick"]
    assert batches_of("gymnasium", sizes) == batches_of("day", sizes) == [1]
    assert batches_of("vector", sizes) == batches_of("torchrl", sizes) == [1, 64, 1_024, 8_192]
    assert batches_of("sync_vector", sizes) == [1, 64, 1_024]
    assert batches_of("day_vector", PRESETS["paper"]) == [1, 64, 1_024, 8_192]


@pytest.mark.skipif(not can_measure(), reason="the system does not say")
def test_peak_memory_sees_what_is_freed_again() -> None:
    with PeakMemory() as meter:
        np.ones(8 * 2**20)  # 64 MiB
    assert meter.peak_mib is not None
    assert 60 < meter.peak_mib < 90


def test_catalogue_beyond_the_caps_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    size = CatalogueSize(num_ads=40, num_codes=4, num_users=5, num_requests=64)
    sizes = replace(LITTLE, max_cells=100, catalogues=(size,))
    seconds, _ = catalogue_figures(size=size, sizes=sizes, threads=1)
    assert [at["batch"] for metrics, at in seconds if "choice_s" in metrics] == [1]
    monkeypatch.setattr(environment_memory, "free_bytes", lambda: 0.0)
    seconds, mib = catalogue_figures(size=size, sizes=LITTLE, threads=1)
    assert not any("batch" in at for _, at in seconds)
    assert [(batch, what) for batch, what, _ in mib] == [(0, "world")] * can_measure()
    reasons = left_out(empty_results(), replace(sizes, batches=(1, 3)))
    assert reasons == [
        "B = 1 with 40 ads: too little free memory",
        "B = 3 with 40 ads: B * N = 120 is above the cap, 100",
    ]


def test_memory_of_nothing_is_a_table_without_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "in_fresh_process", lambda call, **kwargs: {})
    file = tmp_path / "memory.csv"
    measure_memory(world="tiny", world_seed=0, methods=("day",), sizes=LITTLE, file=file)
    assert len(pd.read_csv(file)) == 0


def test_catalogue_rows_carry_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = [({"choice_s": 0.5}, {"batch": 3})], [(0, "world", 7.0), (3, "run", 2.0)]
    monkeypatch.setattr(environment, "in_fresh_process", lambda call, **kwargs: figures)
    file = tmp_path / "memory.csv"
    size = CatalogueSize(num_ads=40, num_codes=4)
    rows = measure_catalogue(size=size, seed=2, sizes=LITTLE, file=file)
    columns = ["method", "num_ads", "batch", "seed", "metric", "value"]
    assert rows[columns].to_numpy().tolist() == [["vector", 40, 3, 2, "choice_s", 0.5]]
    assert pd.read_csv(file).to_numpy().tolist() == [
        ["vector", 40, 0, "world", 7.0],
        ["vector", 40, 3, "run", 2.0],
    ]


def test_help_lists_the_suites_with_their_summaries(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = " ".join(re.sub(r"[│╭╮╰╯─•]", " ", capsys.readouterr().out).split())
    for name, suite in SUITES.items():
        summary = suite_flags(suite).__doc__.partition("\n")[0]
        assert f"{name} {summary}" in shown
