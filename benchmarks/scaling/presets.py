"""Sizes of the models of the scaling suite, and how long each is trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gpr_rl.models import HHDConfig
from gpr_rl.pretraining.trainer import StageConfig

SUITE = "scaling"
SIZES: Mapping[str, HHDConfig] = {
    "10k": HHDConfig(dim=16, num_heads=2, num_hsd_layers=1, num_mtp_heads=1),
    "30k": HHDConfig(dim=24, num_heads=2, num_hsd_layers=2, num_mtp_heads=1),
    "100k": HHDConfig(dim=40, num_heads=4, num_hsd_layers=2, num_mtp_heads=1),
    "300k": HHDConfig(dim=64, num_heads=4, num_hsd_layers=3, num_mtp_heads=1),
    "1m": HHDConfig(dim=96, num_heads=4, num_hsd_layers=4, num_mtp_heads=1),
    "3m": HHDConfig(dim=160, num_heads=8, num_hsd_layers=5, num_mtp_heads=1),
    "10m": HHDConfig(dim=256, num_heads=8, num_hsd_layers=7, num_mtp_heads=1),
}
"""HHDs with all switches as they stand and one head, named by their parameters outside of tables:
of HSD and PTD, without the critic, which takes no part."""
METHODS = tuple(SIZES)
TO_1M = METHODS[:5]


@dataclass(frozen=True, kw_only=True)
class ScalingPreset:
    """Sizes of one preset."""

    world: str = "standard"
    """Default world; one for all seeds, which draw weights and windows anew."""
    num_seeds: int = 3
    methods: tuple[str, ...] = TO_1M
    """Default of `--methods`."""
    training: StageConfig = field(
        default_factory=lambda: StageConfig(num_steps=2_400, warmup_steps=60)
    )
    num_windows: int = 8
    """Windows per step. Of as many requests, larger batches teach all sizes less."""
    num_positions: int = 12
    """Supervised requests per window."""
    learning_rates: tuple[float, ...] = (1e-2, 3e-3, 1e-3)
    """Each a whole training of every size, on a seed of its own; one value: no tuning."""
    tuning_seed: int = 1_000
    num_points: int = 10
    """Points of a loss curve."""
    num_curve: int = 512
    """Draws of requests of held-out days, with replacement, whose loss makes the curve."""
    num_final: int = 4_096
    """Those whose loss counts in the end: of the first held-out day in tuning, of later ones in the
    report."""

    @property
    def tuning_seeds(self) -> tuple[int, ...]:
        """Seeds that no test may use."""
        return (self.tuning_seed,) if len(self.learning_rates) > 1 else ()


PRESETS = {
    "smoke": ScalingPreset(
        world="tiny",
        num_seeds=2,
        training=StageConfig(num_steps=6, warmup_steps=2),
        learning_rates=(3e-3,),
        num_points=3,
        num_curve=32,
        num_final=64,
    ),
    "quick": ScalingPreset(),
    "paper": ScalingPreset(
        num_seeds=10,
        methods=METHODS,
        training=StageConfig(num_steps=20_000, warmup_steps=200),
        num_windows=16,
        learning_rates=(1e-2, 3e-3, 1e-3, 3e-4),
        num_points=25,
        num_curve=2_048,
        num_final=16_384,
    ),
}
