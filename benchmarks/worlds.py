"""The worlds of a run: which one a seed has, opened, or made as a task before others need it."""

from collections.abc import Iterable

from benchmarks.runs.tasks import Task
from benchmarks.settings import Settings
from simulators.make import world_names
from simulators.markets import load_market
from simulators.progress import silent
from simulators.synthetic.config import PRESETS as SYNTHETIC
from simulators.world import World
from simulators.world.info import WorldInfo

BASE = "base"
"""The market without changes."""


def world_seed(world: str, seed: int) -> int:
    """Return the seed of the world of a run's seed: a synthetic world is drawn anew for each."""
    return seed if world in SYNTHETIC else 0


def open_world(world: str, seed: int, market: str = BASE) -> World:
    """Return the world of a run's seed under a market's rules; it is made unless it is cached."""
    return load_market(world, market, world_seed(world, seed), progress=silent)


def make_market(*, world: str, seed: int, market: str = BASE) -> None:
    """Make the world of a market unless it is cached."""
    open_world(world, seed, market)


def on_market(name: str, market: str) -> str:
    """Return a name on a market; the base market goes without saying."""
    return name if market == BASE else f"{name}@{market}"


def needs_world(world: str, seed: int, market: str = BASE) -> tuple[str, ...]:
    """Return the name of the task that makes a seed's world; none for a directory."""
    named = on_market(f"world, seed {world_seed(world, seed)}", market)
    return (named,) if world in world_names() else ()


def world_tasks(
    settings: Settings, seeds: Iterable[int], *, market: str = BASE, cost: float = 1.0
) -> list[Task]:
    """Return a task for each world that these seeds have; none for a directory."""
    world = settings.world
    return [
        settings.task(name, "worlds:make_market", cost=cost, world=world, market=market, seed=seed)
        for seed in sorted({world_seed(world, seed) for seed in seeds})
        for name in needs_world(world, seed, market)
    ]


def world_words(info: WorldInfo, truth: str = "") -> str:
    """Return what a report says of its world: its source, and what of it is simulated."""
    simulated = ", ".join(info.simulated) or "nothing"
    return f"World `{info.name}` ({info.source}{truth}). Simulated: {simulated}. "
