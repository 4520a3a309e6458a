"""Everything that `docs/serving.md` shows is run."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tyro
from fastapi.testclient import TestClient

from gpr_rl.decoding import Recommender
from gpr_rl.policy import save_policy
from gpr_rl.serve.__main__ import ServeArgs
from gpr_rl.serve.app import make_app

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "serving.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
COMMANDS = [line for kind, block in BLOCKS if not kind for line in block.splitlines()]


def shape(x: Any) -> Any:
    """The names and types of a JSON value; of a list, those of its first element."""
    if isinstance(x, dict):
        return {name: shape(value) for name, value in x.items()}
    return [shape(x[0])] if isinstance(x, list) else type(x)


def test_the_python_runs(hhd, world, tmp_path, monkeypatch, capsys) -> None:
    save_policy(hhd, tmp_path / "hepo.safetensors")
    monkeypatch.chdir(tmp_path)
    (block,) = (block for kind, block in BLOCKS if kind == "python")
    exec(compile(block, "serving.md", "exec"), {})
    said = capsys.readouterr().out
    assert "40 False" in said
    assert "accepted=1, answered=1" in said


def test_the_calls_are_answered_as_shown(hhd, world) -> None:
    (shown,) = (block for kind, block in BLOCKS if kind == "json")
    calls = [shlex.split(line) for line in COMMANDS if line.startswith("curl")]
    with TestClient(make_app(Recommender(hhd, world), world)) as client:
        answers = []
        for call in calls:
            path = call[2].removeprefix("localhost:8000")
            name, _, value = call[call.index("-H") + 1].partition(": ")
            body = call[call.index("-d") + 1]
            said = client.post(path, content=body, headers={name: value})
            assert said.status_code == 200, call
            answers.append(said.json())
    assert len(answers) == 3
    assert shape(answers[0]) == shape(json.loads(shown))
    assert shape(answers[1]) == shape(json.loads(shown))
    assert shape(answers[2]) == {"answers": [shape(json.loads(shown))]}


def test_the_command_is_understood() -> None:
    (command,) = (line for line in COMMANDS if line.startswith("python"))
    python, flag, module, *arguments = shlex.split(command)
    assert (python, flag, module) == ("python", "-m", "gpr_rl.serve")
    args = tyro.cli(ServeArgs, args=arguments)
    assert (args.policy, args.world, args.port) == (Path("hepo.safetensors"), "tiny", 8_000)
    assert args.host == "127.0.0.1"
    for name in re.findall(r"`--([\w-]+)`", PAGE):
        assert hasattr(args, name.replace("-", "_")), name


@pytest.mark.parametrize("extra", re.findall(r"pip install 'gpr_rl\[(\w+)\]'", PAGE))
def test_the_extra_exists(extra) -> None:
    assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
