"""A catalogue in files: what comes back is what was saved, and damage is named."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gpr_rl.checkpoint import CheckpointError
from gpr_rl.decoding import CodeTrie, beam_search
from tests.gpr_rl.decoding.test_updates import check_same
from tests.references.decoding_fakes import StepPolicy, catalogue, requests


@pytest.fixture
def saved(tmp_path: Path) -> tuple[CodeTrie, Path]:
    codes, _ = catalogue(0, 50, 3, 4, 2)
    trie = CodeTrie(codes, 4, torch.arange(50.0) % 3)
    trie.add(torch.tensor([[1, 2, 3]]), torch.tensor([77]), torch.tensor([1.0]))
    trie.retire(torch.arange(5, 9))
    trie.set_active(torch.arange(78) % 5 > 0)
    trie.save(tmp_path / "deep" / "trie")
    return trie, tmp_path / "deep" / "trie"


def test_a_saved_catalogue_comes_back(saved: tuple[CodeTrie, Path]) -> None:
    trie, folder = saved
    back = CodeTrie.load(folder)
    check_same(back.tree, trie.tree)
    assert back.tree.active is not None
    assert torch.equal(back.tree.active, trie.tree.active)
    assert (back.version, back.num_ads, back.num_codes) == (3, 78, 4)
    policy = StepPolicy(0, 2, 3, 4)
    one, other = (beam_search(policy, requests(0, 1), t, 9) for t in (trie, back))
    assert torch.equal(one.ad_id, other.ad_id)
    assert torch.equal(one.log_prob, other.log_prob)


def test_its_arrays_stay_in_the_files_and_updates_leave_them(saved: tuple[CodeTrie, Path]) -> None:
    _, folder = saved
    back = CodeTrie.load(folder)
    assert isinstance(back.tree.ad_id.numpy().base, object)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    back.add(torch.tensor([[0, 0, 0]]), torch.tensor([5]), torch.tensor([0.0]))
    back.retire(torch.tensor([77]))
    back.tree.ad_id[:] = 0  # a page that is written to is this process's own
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert CodeTrie.load(folder).num_ads == 78


def test_another_process_reads_it(saved: tuple[CodeTrie, Path]) -> None:
    trie, folder = saved
    program = (
        f"from gpr_rl.decoding import CodeTrie; print(CodeTrie.load({str(folder)!r}).paths.sum())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == str(trie.paths.sum()), done.stderr


def test_nothing_is_overwritten(saved: tuple[CodeTrie, Path]) -> None:
    trie, folder = saved
    with pytest.raises(FileExistsError, match=str(folder)):
        trie.save(folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["trie"]


def test_every_damage_is_named(saved: tuple[CodeTrie, Path]) -> None:
    _, folder = saved
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for damaged in (b"", whole[: len(whole) // 2], b"x" + whole[1:]):
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=path.name):
                CodeTrie.load(folder)
        path.unlink()
        with pytest.raises(CheckpointError, match=path.name):
            CodeTrie.load(folder)
        path.write_bytes(whole)
    CodeTrie.load(folder)


@pytest.mark.parametrize("name", ["edge", "first0", "first2"])
def test_rows_of_another_tree_are_refused(saved: tuple[CodeTrie, Path], name: str) -> None:
    _, folder = saved
    rows = np.load(folder / f"{name}.npy")
    rows[-1] += 1
    np.save(folder / f"{name}.npy", rows)
    with pytest.raises(CheckpointError, match="it is of another tree"):
        CodeTrie.load(folder)


def test_another_format_is_refused(saved: tuple[CodeTrie, Path]) -> None:
    _, folder = saved
    about = json.loads((folder / "trie.json").read_text())
    (folder / "trie.json").write_text(json.dumps({**about, "format": 2}))
    with pytest.raises(CheckpointError, match="its format is 2, not 1"):
        CodeTrie.load(folder)
