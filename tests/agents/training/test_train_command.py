"""`python -m agents.train`: what it refuses, and that nothing is lost by it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agents.training.command import main
from agents.warm_start import build_model
from gpr_rl.models import HHDConfig
from gpr_rl.policy import save_policy
from simulators.world import World


def test_a_run_grows_and_what_does_not_fit_is_refused(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, out = tmp_path / "start.safetensors", tmp_path / "run"
    save_policy(build_model(world, HHDConfig(dim=16), seed=0), start)
    shared = ["grpo", "--initial-policy", str(start), "--out", str(out)]
    sizes = ["num_candidates=4", "num_requests=8"]
    assert main([*shared, "--set", *sizes, "num_steps=1"]) == 0
    settings = (out / "config.json").read_text()
    other = [*shared, "--resume", "--set", "num_candidates=4", "num_requests=16"]
    for wrong, message in (
        (other, "was made with num_requests=8, not 16"),
        ([*shared, "--set", *sizes], "is not empty; --resume goes on with its run"),
        ([*shared, "--resume", "--seed", "1", "--set", *sizes], "made with seed=0, not 1"),
        (["gpro", *shared[1:]], "unknown method 'gpro'; known: hepo"),
    ):
        capsys.readouterr()
        assert main(wrong) == 2
        assert message in capsys.readouterr().err
        assert (out / "config.json").read_text() == settings
    assert main([*shared, "--resume", "--set", *sizes, "num_steps=2"]) == 0
    assert len((out / "log.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_the_commands_of_the_page_run_and_agree(world: World, tmp_path: Path) -> None:
    """`docs/scaling_out.md`: its command blocks in their order, small, in an empty folder."""
    root = Path(__file__).resolve().parents[3]
    page = (root / "docs" / "scaling_out.md").read_text()
    blocks = re.findall(r"```\n(.*?)```", page, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if "agents.train" in line]
    assert len(lines) == 3
    start = tmp_path / "start.safetensors"
    save_policy(build_model(world, HHDConfig(dim=16), seed=0), start)
    sizes = "num_steps=1 num_requests=8 num_candidates=4 critic_warmup_steps=0"
    small = f"--world tiny --initial-policy {start} --set {sizes}"
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": str(root), "PATH": paths}
    for line in lines:
        command = line.replace("--world small", small)
        done = subprocess.run(
            command.split(), cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, (command, done.stderr)
    one, four = (tmp_path / "runs" / name / "policy.safetensors" for name in ("hepo", "hepo4"))
    assert one.read_bytes() == four.read_bytes()
