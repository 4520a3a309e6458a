"""What a command says while it makes a world, and of the world at its end."""

import sys
from collections.abc import Callable

from simulators.world import World

Progress = Callable[[str], None]
"""Called with one line per stage."""


def silent(message: str) -> None:
    """Drop progress lines."""


def to_stderr(message: str) -> None:
    """Print one progress line."""
    print(message, file=sys.stderr, flush=True)


def print_cards(world: World) -> None:
    """Print the grades of a world's rankers."""
    for task in ("pctr", "pcvr"):
        if task in world.ranker_card:
            grades = world.ranker_card[task]
            print(f"{task}: " + "  ".join(f"{k} {v:.4g}" for k, v in grades.items()))
