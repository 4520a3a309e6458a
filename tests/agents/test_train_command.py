"""`python -m agents.train`: what it refuses, and that nothing is lost by it."""

from pathlib import Path

import pytest

from agents.train import main
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
