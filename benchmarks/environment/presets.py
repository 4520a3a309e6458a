"""Interfaces and sizes of the environment suite."""

from dataclasses import dataclass

from benchmarks.environment.worlds import CatalogueSize

SUITE = "environment"
SINGLE, VECTOR, SYNC = "gymnasium", "vector", "sync_vector"
TORCH, ROLLOUT = "torchrl", "torchrl_rollout"
DAY, DAY_VECTOR, DAY_TORCH = "day", "day_vector", "day_torchrl"
SINGLES = (SINGLE, DAY)
METHODS = (SINGLE, VECTOR, SYNC, TORCH, ROLLOUT, DAY, DAY_VECTOR, DAY_TORCH)
DAYS = (DAY, DAY_VECTOR, DAY_TORCH)
TORCHES = (TORCH, ROLLOUT, DAY_TORCH)

TARGET_BATCH = 1_024
TARGET_VECTOR = 200_000.0
"""Code choices per second of the vector environment with `TARGET_BATCH` rows."""
TARGET_OVER_SYNC = 20.0
"""The same, as a multiple of Gymnasium's `SyncVectorEnv` over single environments."""
TARGET_SINGLE = 5_000.0
"""Code choices per second of one environment."""


@dataclass(frozen=True, kw_only=True)
class EnvironmentPreset:
    """Sizes of one preset."""

    world: str = "small"
    """Default world."""
    num_seeds: int = 3
    """Rounds: each measures everything once, on one world, with other requests and actions."""
    batches: tuple[int, ...] = (1, 64, 1_024, 8_192)
    """B, rows of the batched interfaces."""
    max_sync_batch: int = 1_024
    """Largest B of `SyncVectorEnv`, whose time grows with every row."""
    max_day_batch: int = 1_024
    """Largest B of the days."""
    day_requests: int = 6
    """Requests of a measured day, spread over its hours; a whole day takes minutes."""
    threads: tuple[int, ...] = (1, 2)
    """Threads of torch, one setting after the other."""
    num_repeats: int = 2
    """Repeats of every figure within a round."""
    repeat_s: float = 0.1
    """Least length of a repeat."""
    limit_s: float = 1.5
    """No further repeat of a figure begins after this; there is at least one."""
    memory_batches: tuple[int, ...] = (1_024,)
    """B whose memory is measured, each in a process of its own, in the first round."""
    memory_methods: tuple[str, ...] = METHODS
    """Whose memory is measured; the single environments have B = 1."""
    catalogues: tuple[CatalogueSize, ...] = (
        CatalogueSize(num_ads=1_000, num_codes=16),
        CatalogueSize(num_ads=10_000, num_codes=64),
        CatalogueSize(num_ads=100_000, num_codes=256),
        CatalogueSize(num_ads=1_000_000, num_codes=256),
    )
    """N and V of the scaling with the catalogue, in the first round."""
    max_cells: int = 150_000_000
    """B * N at most."""


PRESETS = {
    "smoke": EnvironmentPreset(
        world="tiny",
        num_seeds=2,
        batches=(1, 64),
        day_requests=3,
        repeat_s=0.02,
        limit_s=0.3,
        memory_batches=(64,),
        memory_methods=(),
        catalogues=(
            CatalogueSize(num_ads=1_000, num_codes=16, num_users=50),
            CatalogueSize(num_ads=10_000, num_codes=64, num_users=50),
        ),
        max_cells=1_000_000,
    ),
    "quick": EnvironmentPreset(),
    "paper": EnvironmentPreset(
        num_seeds=10,
        max_day_batch=8_192,
        day_requests=24,
        memory_batches=(64, 1_024, 8_192),
        num_repeats=5,
        repeat_s=0.5,
        limit_s=20.0,
        max_cells=1_000_000_000,
    ),
}
