"""The tokenizers suite: its rows, its tuning, and a small run from the command line."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.run import RunArgs, main, make_settings
from benchmarks.runs.results import read_results
from benchmarks.suite import SUITES, load_suite
from benchmarks.tokenizers import catalogues as tokenizers_catalogues
from benchmarks.tokenizers.catalogues import Catalogue, load_catalogue
from benchmarks.tokenizers.fit import SPACES, UASID_SHAPES, make_tokenizer, measure, shape_codes
from benchmarks.tokenizers.presets import METHODS, PRESETS
from benchmarks.tokenizers.speed import encode_stream, fit_and_encode
from gpr_rl.tokenizers import quality
from simulators.make import load_world
from tests.gpr_rl.tokenizers.tokenizer_data import clusters

TINY = replace(PRESETS["smoke"], max_items=300, num_trials=2, speed_items=1_000, stream_items=2_000)


def catalogue(num_items: int = 300) -> Catalogue:
    return Catalogue(clusters(num_items), [str(i) for i in range(num_items)], 16)


def test_every_shape_has_as_many_paths() -> None:
    for num_codes in (16, 64, 256):
        assert {math.prod(shape_codes(shape, num_codes)) for shape in UASID_SHAPES} == {
            num_codes**3
        }
    assert shape_codes((4, 1, -4), 64) == (256, 64, 16)
    assert make_tokenizer("ua_sid", 64, 0, {"shape": [1, 1, 1]}).num_codes == (64, 64, 64)
    assert set(SPACES) == set(METHODS)


def test_grades_are_those_of_quality_on_the_parts() -> None:
    settings = {"num_iterations": 5}
    grades = measure("rq_kmeans", catalogue(), 7, settings)
    x = clusters(300)
    held_out = np.random.default_rng(7).permutation(300)[:60]
    train = np.setdiff1d(np.arange(300), held_out)
    tokenizer = make_tokenizer("rq_kmeans", 16, 7, settings).fit(x[train])
    for name, rows in (("train", train), ("heldout", np.sort(held_out))):
        codes = tokenizer.encode(x[rows])
        found = quality(codes, x[rows], 16, tokenizer.decode(codes))
        assert grades[name, 0]["collision_rate"] == found.collision_rate
        assert grades[name, 2]["code_usage"] == found.code_usage[1].item()
        assert grades[name, 0]["reconstruction_error"] == found.reconstruction_error
    assert grades["all", 0]["num_paths"] == 16**3
    assert grades["all", 0]["twins"] == 0.0


def test_the_synthetic_items_are_those_of_the_world() -> None:
    found = load_catalogue("world", world="tiny", source=None, seed=0, max_items=10, text_dim=4)
    world = load_world("tiny")
    assert np.array_equal(found.x, world.item_embedding.numpy())
    assert found.num_codes == world.info.num_codes


def test_a_file_is_drawn_anew_for_each_seed(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", clusters(100))
    drawn = [
        load_catalogue(
            "file", world="tiny", source=tmp_path / "x.npy", seed=s, max_items=40, text_dim=4
        )
        for s in (0, 0, 1)
    ]
    assert drawn[0].x.shape == (40, 8)
    assert np.array_equal(drawn[0].x, drawn[1].x)
    assert not np.array_equal(drawn[0].x, drawn[2].x)


@pytest.mark.parametrize("num_items", [40, 600, 5_000])
def test_few_real_items_have_fewer_codes_than_rows(tmp_path: Path, num_items: int) -> None:
    np.save(tmp_path / "x.npy", clusters(num_items))
    found = load_catalogue(
        "file", world="tiny", source=tmp_path / "x.npy", seed=0, max_items=num_items, text_dim=4
    )
    fitted = [code for shape in UASID_SHAPES for code in shape_codes(shape, found.num_codes)[:-1]]
    assert max(fitted) <= 0.8 * num_items  # the last level is a hash


def test_speed_figures_are_there() -> None:
    found = fit_and_encode(seed=0, num_items=600)
    assert found[1]["encoded_per_s"] > 0
    stream = encode_stream(seed=0, num_items=1_000)
    assert stream["num_items"] == 1_000


@pytest.mark.slow
def test_a_small_run_reports_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(tokenizers_catalogues, "CATALOGUES", ("world",))
    monkeypatch.setattr("benchmarks.tokenizers.suite.CATALOGUES", ("world",))
    np.save(tmp_path / "own.npy", clusters(200))
    suite = replace(load_suite("tokenizers", SUITES), presets={"smoke": TINY})
    out = tmp_path / "run"
    words = ["tokenizers", "--preset", "smoke", "--out", str(out), "--seeds", "3"]
    words += ["--methods", "rq_kmeans", "rq_kmeans_plus", "ua_sid"]
    words += ["--embeddings", str(tmp_path / "own.npy")]
    assert main(words, {"tokenizers": suite}) == 0
    table = read_results(out / "results.parquet")
    rows = set(zip(table["method"], table["catalogue"], strict=True))
    assert {("rq_kmeans", "world"), ("ua_sid", "file"), ("machine", "")} <= rows
    page = (out / "report.html").read_text()
    assert "The paper finds fewer collisions" in page
    assert "own.npy" in page
    choice = json.loads((out / "tuning" / "ua_sid@world.json").read_text())
    assert len(choice["trials"]) == 2
    before = (out / "results.parquet").read_bytes()
    assert main([*words, "--resume"], {"tokenizers": suite}) == 0
    assert (out / "results.parquet").read_bytes() == before
    capsys.readouterr()
    assert main(["alignment", "--embeddings", "x.npy"], SUITES) == 2
    assert "suite 'alignment' has no --embeddings" in capsys.readouterr().err
    missing = [*words[:-1], str(tmp_path / "absent.npy"), "--out", str(tmp_path / "other")]
    assert main(missing, {"tokenizers": suite}) == 2
    assert "absent.npy: no such file" in capsys.readouterr().err


def test_a_run_plans_every_pair_once(tmp_path: Path) -> None:
    words = RunArgs(suite="tokenizers", preset="quick", out=tmp_path, seeds=3)
    suite, settings = make_settings(words, SUITES)
    tasks = suite.make_tasks(settings)
    names = [task.name for task in tasks]
    assert len(set(names)) == len(names)
    known = set(names)
    assert all(known.issuperset(task.needs) for task in tasks)
    for catalogue in tokenizers_catalogues.CATALOGUES:
        assert sum(f"rq_vae@{catalogue}, seed" in name for name in names) == 3
