import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from gpr_rl.models import HHD
from gpr_rl.policy import save_policy
from gpr_rl.serve.__main__ import main

ROOT = Path(__file__).resolve().parents[3]
LONG_S = 120.0


@pytest.fixture(scope="module")
def policy(hhd, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("policy") / "policy.safetensors"
    save_policy(hhd, path)
    return path


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that the command says of a mistake."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


class TestMistakes:
    def test_in_the_policy(self, capsys, tmp_path, world) -> None:
        said = mistake(capsys, tmp_path / "none.safetensors", "--world", "tiny")
        assert "none.safetensors" in said
        broken = tmp_path / "broken.safetensors"
        broken.write_bytes(b"nothing")
        assert "broken.safetensors" in mistake(capsys, broken, "--world", "tiny")

    def test_in_the_world(self, capsys, policy, tmp_path) -> None:
        assert "unknown world 'nowhere'" in mistake(capsys, policy, "--world", "nowhere")
        assert "has no world.json" in mistake(capsys, policy, "--world", tmp_path)

    def test_in_both(self, capsys, hhd, tmp_path) -> None:
        path = tmp_path / "other.safetensors"
        save_policy(HHD(hhd.config, replace(hhd.spec, num_codes=8)), path)
        said = mistake(capsys, path, "--world", "tiny")
        assert "made for another world: its num_codes is 8, that of tiny is 16" in said

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (("--port", "65536"), "--port must lie in 0..65535, got 65536"),
            (("--max-batch", "0"), "max_batch must be at least 1, got 0"),
            (("--grace-s", "-1"), "grace_s must be finite and at least 0, got -1"),
            (("--host", "256.1.1.1", "--port", "0"), "can't listen on 256.1.1.1, port 0"),
        ],
    )
    def test_in_the_numbers(self, capsys, policy, flags, words) -> None:
        assert words in mistake(capsys, policy, "--world", "tiny", *flags)

    def test_the_extra_is_not_installed(self, capsys, policy, monkeypatch) -> None:
        for name in [name for name in sys.modules if name.startswith("gpr_rl.serve.")]:
            if name != "gpr_rl.serve.__main__":
                monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "fastapi", None)
        said = mistake(capsys, policy, "--world", "tiny")
        assert said == "error: fastapi is not installed: pip install 'gpr_rl[serve]'\n"


def test_the_rest_of_the_package_needs_no_extra() -> None:
    program = """
import sys
for name in ("fastapi", "pydantic", "prometheus_client", "starlette", "uvicorn"):
    sys.modules[name] = None
import gpr_rl.decoding.serve, gpr_rl.serve.__main__
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


class Server:
    """The command in a process of its own."""

    def __init__(self, policy: Path, *flags: str) -> None:
        command = [sys.executable, "-m", "gpr_rl.serve", str(policy), "--world", "tiny", *flags]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert found, (line, self.process.communicate())
        self.port = found[1]

    def ask(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        head = {"Content-Type": "application/json"}
        request = Request(f"http://127.0.0.1:{self.port}{path}", data, head)
        with urlopen(request, timeout=LONG_S) as said:
            return json.loads(said.read())

    def end(self, number: int) -> tuple[int, str, str]:
        os.kill(self.process.pid, number)
        out, err = self.process.communicate(timeout=LONG_S)
        return self.process.returncode, out, err


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    started: list[Server] = []
    yield started
    for server in started:
        if server.process.poll() is None:
            server.end(signal.SIGKILL)


@pytest.mark.slow
def test_what_was_accepted_before_sigterm_is_answered(policy, servers, world) -> None:
    an_hour = "3600000"  # so that all of them wait when the signal comes
    servers.append(Server(policy, "--port", "0", "--deadline-ms", an_hour))
    server, ids = servers[0], world.request_ids("test")[:20].tolist()
    with ThreadPoolExecutor(len(ids)) as pool:
        waiting = [pool.submit(server.ask, "/recommend", {"request_id": i}) for i in ids]
        while server.ask("/healthz")["queue_length"] < len(ids):
            pass
        code, out, err = server.end(signal.SIGTERM)
        answers = [one.result() for one in waiting]
    assert (code, out, err) == (0, "", "")
    assert [answer["request_id"] for answer in answers] == ids
    assert all(len(answer["ads"]) == 40 for answer in answers)


@pytest.mark.slow
def test_after_kill_it_starts_again_from_the_same_files(policy, servers) -> None:
    servers.append(Server(policy, "--port", "0"))
    first = servers[0].ask("/recommend", {"user_id": 3})
    assert servers[0].end(signal.SIGKILL)[0] == -signal.SIGKILL
    servers.append(Server(policy, "--port", servers[0].port))
    second = servers[1].ask("/recommend", {"user_id": 3})
    assert first["ads"] == second["ads"]
    assert not second["cached"]
    assert servers[1].end(signal.SIGINT)[::2] == (0, "")
