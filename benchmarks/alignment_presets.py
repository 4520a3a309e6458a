"""Rows and sizes of the alignment suite."""

from dataclasses import dataclass, field

from agents.methods import TrainConfig
from agents.warm_start import WarmStartConfig
from gpr_rl.models import HHDConfig
from gpr_rl.pretraining.trainer import StageConfig

SUITE = "alignment"
WARM_ROWS = ("mtp", "vaft")
METHODS = (*WARM_ROWS, "dpo", "ppo", "grpo", "hepo", "hepo_terminal")


@dataclass(frozen=True, kw_only=True)
class AlignmentPreset:
    """Sizes of one preset."""

    world: str = "small"
    """Default world."""
    num_seeds: int = 3
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    training: TrainConfig = field(default_factory=TrainConfig)
    num_test_requests: int = 300
    """Held-out requests that every row is measured on."""
    num_validation_requests: int = 64
    """Requests of the first held-out day for the curves during training."""
    validate_every: int = 20
    """Training steps between points of the curves."""
    list_size: int = 40
    """K of beams and shared lists (GPR 3.3)."""


PRESETS = {
    "smoke": AlignmentPreset(
        world="tiny",
        num_seeds=2,
        warm_start=WarmStartConfig(
            model=HHDConfig(dim=32, num_hsd_layers=1),
            mtp=StageConfig(num_steps=30),
            vaft=StageConfig(num_steps=15, learning_rate=1e-3),
            critic=StageConfig(num_steps=10),
            num_windows=32,
        ),
        training=TrainConfig(
            num_steps=10,
            num_requests=32,
            num_candidates=8,
            critic_warmup_steps=2,
        ),
        num_test_requests=60,
        num_validation_requests=24,
        validate_every=5,
    ),
    "quick": AlignmentPreset(),
    "paper": AlignmentPreset(
        num_seeds=10, training=TrainConfig(num_steps=300), num_test_requests=1_000
    ),
}
