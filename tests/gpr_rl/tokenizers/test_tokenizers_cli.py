import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from gpr_rl.tokenizers import UASID, quality
from gpr_rl.tokenizers import __main__ as cli
from gpr_rl.tokenizers.kinds import open_tokenizer
from gpr_rl.tokenizers.report import study_codes
from tests.gpr_rl.tokenizers.tokenizer_data import clusters


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["tokenizers", *map(str, words)])
    return cli.main()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", clusters(300).astype(np.float16))
    (tmp_path / "names.txt").write_text("".join(f"item <{i}>\n" for i in range(300)))
    keys = {"ad": [f"a{i}" for i in range(300)], "account": [f"b{i % 9}" for i in range(300)]}
    pd.DataFrame(keys).to_parquet(tmp_path / "keys.parquet")
    return tmp_path


def fit(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: object) -> Path:
    out = folder / "out"
    code = run(
        monkeypatch, "fit", "--embeddings", folder / "x.npy", "--out", out, "--seed", 3, *words
    )
    assert code == 0
    return out


@pytest.mark.parametrize("method", ["rq_kmeans", "rq_vae", "rq_kmeans_plus", "ua_sid"])
def test_fits_reports_and_encodes(
    method: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    epochs = ("--set", "num_epochs=2") if method in ("rq_vae", "rq_kmeans_plus") else ()
    keys = ("--keys", folder / "keys.parquet") if method == "ua_sid" else ()
    sizes = ("--levels", 3, "--codes", 8, 4, 2)
    out = fit(folder, monkeypatch, "--method", method, *sizes, *epochs, *keys)
    said = capsys.readouterr().out
    assert "held out: 60 rows, collision rate" in said
    tokenizer = open_tokenizer(out)
    assert tokenizer.num_codes == (8, 4, 2)
    page = (out / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")  # opens offline
    if isinstance(tokenizer, UASID):
        assert len(tokenizer.index) == 300
        table = pd.read_parquet(folder / "keys.parquet")
        codes = tokenizer.encode(folder / "x.npy", {k: v.tolist() for k, v in table.items()})
        assert torch.equal(tokenizer.index.codes(range(300)), codes)
    assert run(monkeypatch, "report", out, "--names", folder / "names.txt") == 0
    assert "item &lt;" in (out / "report.html").read_text()
    codes = folder / "codes.parquet"
    assert run(monkeypatch, "encode", out, "--embeddings", folder / "x.npy", "--out", codes) == 0
    expected = tokenizer.encode(folder / "x.npy").numpy()
    assert np.array_equal(pd.read_parquet(codes).to_numpy(), expected)


def test_the_report_says_what_quality_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = fit(folder, monkeypatch, "--method", "rq_kmeans", "--codes", 8, "--holdout", 0)
    tokenizer = open_tokenizer(out)
    x = np.load(folder / "x.npy")
    codes = tokenizer.encode(x)
    found = quality(codes, x, 8, tokenizer.decode(codes))
    said = capsys.readouterr().out
    assert f"all: 300 rows, collision rate {found.collision_rate:.4f}" in said
    assert "held out" not in said
    assert f"{found.reconstruction_error:.4g}" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--codes", "400"), "got 240 rows for 400 codes"),
        (
            ("--method", "vq"),
            "tokenizer must be one of rq_kmeans, rq_vae, rq_kmeans_plus, ua_sid, got",
        ),
        (("--holdout", "1"), r"--holdout must lie in [0, 1), got 1"),
        (("--set", "depth=3"), "--set depth=3: RQKMeans takes num_iterations"),
        (("--set", "num_iterations=x"), "num_iterations is of type int"),
        (("--keys", "keys.parquet"), "--keys is for ua_sid, not rq_kmeans"),
        (("--names", "short.txt"), "there are 1 names for 300 rows"),
        (("--embeddings", "absent.npy"), "absent.npy: no such file"),
    ],
)
def test_mistakes_end_with_2_and_one_line(
    words: tuple[str, ...],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(folder)
    (folder / "short.txt").write_text("one\n")
    given = ("--embeddings", "x.npy", "--method", "rq_kmeans", "--codes", "8", "--out", "o")
    if words[0] in given:
        at = given.index(words[0])
        given = (*given[:at], *given[at + 2 :])
    assert run(monkeypatch, "fit", *given, *words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_directory_in_use_and_a_file_that_changed_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = fit(folder, monkeypatch, "--method", "rq_kmeans", "--codes", 8)
    again = ("fit", "--embeddings", folder / "x.npy", "--out", out)
    assert run(monkeypatch, *again) == 2
    assert "exists already and is not empty" in capsys.readouterr().err
    np.save(folder / "x.npy", clusters(300, seed=1))
    assert run(monkeypatch, "report", out) == 2
    assert "is not what it was at the fit" in capsys.readouterr().err
    assert run(monkeypatch, "report", out, "--embeddings", folder / "x.npy") == 0
    info = json.loads((out / "fit.json").read_text())
    assert info["rows"] == 300
    assert run(monkeypatch, "report", folder) == 2
    assert "tokenizer.json is missing" in capsys.readouterr().err


def verdict(codes: np.ndarray, x: np.ndarray, num_codes: tuple[int, ...]) -> str:
    tensor = torch.from_numpy(codes)
    rows = torch.from_numpy(x.astype(np.float32))
    none = torch.zeros(len(x), dtype=torch.bool)
    return " ".join(study_codes(tensor, rows, rows, num_codes, none).verdict)


def test_the_verdict_finds_what_is_wrong() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 4))
    fine = np.stack([np.arange(400) % 20, np.arange(400) // 20], axis=1)
    assert verdict(fine, x, (20, 20)) == ""
    collapsed = fine.copy()
    collapsed[:, 0] = rng.random(400) < 0.01
    assert "Level 1 has collapsed: its 20 codes" in verdict(collapsed, x, (20, 20))
    dead = fine.copy()
    dead[:, 1] %= 15
    assert "Level 2 has 5 dead codes of 20." in verdict(dead, x, (20, 20))
    deep = np.c_[fine, np.zeros(400, dtype=np.int64)]
    assert "More paths than items: the first 2 levels have 900" in verdict(deep, x, (30, 30, 1))
    assert "of the items share their path" in verdict(fine[:, :1], x, (20,))
    twins = np.repeat(x[:200], 2, axis=0)
    assert "100.0% of the items have the same embedding" in verdict(fine, twins, (20, 20))


def test_a_study_lists_the_largest_collisions() -> None:
    codes = torch.tensor([[0, 0]] * 3 + [[1, 1]] * 2 + [[2, 2]])
    x = torch.eye(6)
    none = torch.zeros(6, dtype=torch.bool)
    found = study_codes(codes, x, x, (3, 3), none, [f"n{i}" for i in range(6)])
    assert [c.path for c in found.largest] == [(0, 0), (1, 1)]
    assert found.largest[0].rows == (0, 1, 2)
    assert found.largest[0].names == ("n0", "n1", "n2")
    assert found.children == (3.0, 1.0)
    assert found.counts[0].tolist() == [3, 2, 1]
