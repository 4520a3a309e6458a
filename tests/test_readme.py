"""The Python of README and docs runs as it stands."""

import re
import sys
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_environment_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(BLOCKS[0], "README.md", "exec"), {})
    assert "'impressions': 1" in capsys.readouterr().out


def test_the_reward_example_is_a_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gymnasium

    (tmp_path / "my_reward.py").write_text(BLOCKS[1])
    monkeypatch.chdir(tmp_path)
    env = gymnasium.make(
        "envs:gpr_rl/AdRequest-v0", world="tiny", reward=["my_reward:cheap_and_clicked"]
    )
    env.reset(seed=0)
    assert "my_reward" in sys.modules


@pytest.mark.slow
def test_training_and_decoding_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(BLOCKS[2], "README.md", "exec"), names)
    exec(compile(BLOCKS[3], "README.md", "exec"), names)
    assert (names["ads"].ad_id >= 0).any()


def test_the_examples_of_semantic_ids_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).resolve().parent.parent / "docs" / "semantic_ids.md"
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(compile(block, str(page), "exec"), {})
    assert "500" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:Creating:DeprecationWarning")  # of torchrl's own collectors
def test_the_torchrl_page_runs_from_top_to_bottom() -> None:
    page = Path(__file__).resolve().parent.parent / "docs" / "torchrl.md"
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(compile(block, str(page), "exec"), names)
    assert names["losses"]["loss_objective"].isfinite()
    assert names["loss"].tensor_keys.advantage == "mine"
