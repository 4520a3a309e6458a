"""What a command says while it makes a world, and of the world at its end."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import tyro

from simulators.world import World

Progress = Callable[[str], None]
"""Called with one line per stage."""


def silent(message: str) -> None:
    """Drop progress lines."""


def to_stderr(message: str) -> None:
    """Print one progress line."""
    print(message, file=sys.stderr, flush=True)


@dataclass(frozen=True, kw_only=True)
class WorldArgs:
    """What the commands that make worlds have in common."""

    seed: int = 0
    """Root of every random stream."""
    out: Path
    """Directory to make; must not exist yet."""


Args = TypeVar("Args", bound=WorldArgs)


def run_command(
    kind: type[Args],
    description: str | None,
    make: Callable[[Args], World],
    report: Callable[[World], str],
) -> int:
    """Make a world as the command line says, print the rankers' grades and return 0.

    A user's mistake is printed in one line and gives 2.
    """
    started = time.monotonic()
    try:
        args = tyro.cli(kind, description=description)
        if args.seed < 0:
            raise ValueError(f"--seed must be at least 0, got {args.seed}")
        if args.out.exists():
            raise ValueError(f"--out {args.out} exists already; a world is never overwritten")
        world = make(args)
    except (ValueError, OSError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    for task in ("pctr", "pcvr"):
        if task in world.ranker_card:
            grades = world.ranker_card[task]
            print(f"{task}: " + "  ".join(f"{k} {v:.4g}" for k, v in grades.items()))
    if report(world):
        print(report(world))
    print(f"{args.out}: {world.num_requests:,} requests in {time.monotonic() - started:.0f} s")
    return 0
