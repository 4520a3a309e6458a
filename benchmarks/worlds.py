"""The worlds of a run: which one a seed has, opened, or made as a task before others need it."""

from simulators.markets import load_market
from simulators.progress import silent
from simulators.synthetic.config import PRESETS as SYNTHETIC
from simulators.world import World

BASE = "base"
"""The market without changes."""


def world_seed(world: str, seed: int) -> int:
    """Return the seed of the world of a run's seed: a synthetic world is drawn anew for each."""
    return seed if world in SYNTHETIC else 0


def open_market(world: str, market: str, seed: int) -> World:
    """Return the world of a run's seed under a market's rules; it is made unless it is cached."""
    return load_market(world, market, world_seed(world, seed), progress=silent)


def make_market(*, world: str, seed: int, market: str = BASE) -> None:
    """Make the world of a market unless it is cached."""
    open_market(world, market, seed)
