"""Rows and sizes of the off-policy suite."""

from dataclasses import dataclass, field

from agents.warm_start import WarmStartConfig
from gpr_rl.models import HHDConfig
from gpr_rl.pretraining.trainer import StageConfig

SUITE = "off_policy"
TRUTH = "truth"
"""Not an estimator: what the policies are worth, that of the logging policy as `behavior`."""
AD_METHODS = ("ips", "ips_clipped", "snips", "dm", "dr", "dr_clipped")
SLATE_METHODS = (
    "slate_sips",
    "slate_snsips",
    "slate_iips",
    "slate_sniips",
    "slate_rips",
    "slate_snrips",
    "slate_dm",
    "slate_cascade_dr",
)
METHODS = (*AD_METHODS, *SLATE_METHODS)


@dataclass(frozen=True, kw_only=True)
class OffPolicyPreset:
    """Sizes of one preset."""

    world: str = "small"
    """Default world; it must have a known truth."""
    num_seeds: int = 3
    num_requests: int = 400
    """Test requests that logs draw from, with replacement; the truth is their mean."""
    num_slate_requests: int = 100
    """The same for slates, whose truth costs N^2 steps per request and policy."""
    log_sizes: tuple[int, ...] = (500, 2_000, 8_000)
    """Rows per log; a small log is the beginning of the larger one."""
    num_replications: int = 100
    """Logs per seed."""
    num_positions: int = 3
    """S, ads per slate."""
    temperatures: tuple[float, ...] = (2.0, 0.5, 0.1)
    """Target policies: softmax of the rankers' reward over these, in units of its scale."""
    epsilon: float = 0.1
    """A target policy: the rankers' favourite, but a uniform legal ad this often."""
    slate_floor: float = 0.05
    """Share of a uniform draw in every slate policy, so that a second ad always remains."""
    max_weight: float = 30.0
    """Of the clipped estimators."""
    warm_start: WarmStartConfig = field(
        default_factory=lambda: WarmStartConfig(mtp=StageConfig(num_steps=100))
    )
    """A target policy: the HHD after next-ad training (its first stage alone)."""


PRESETS = {
    "smoke": OffPolicyPreset(
        world="tiny",
        num_seeds=2,
        num_requests=100,
        num_slate_requests=40,
        log_sizes=(250, 1_000),
        num_replications=100,
        warm_start=WarmStartConfig(
            model=HHDConfig(dim=32, num_hsd_layers=1), mtp=StageConfig(num_steps=30), num_windows=32
        ),
    ),
    "quick": OffPolicyPreset(),
    "paper": OffPolicyPreset(
        num_seeds=10,
        num_requests=1_000,
        num_slate_requests=300,
        log_sizes=(500, 2_000, 8_000, 32_000),
        num_replications=200,
    ),
}
