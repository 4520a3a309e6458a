"""Does it matter whom an ad is shown to? `python -m simulators.gate small --seeds 10`."""

import sys
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any

import tyro

from simulators.make import load_world
from simulators.synthetic.config import GATED
from simulators.synthetic.worth import (
    FAVOURITE,
    LEAST_TRUTH,
    MOST_CONSTANT,
    NotPersonalError,
)

COLUMNS = ("constant", "signature", "cluster", FAVOURITE, "logging@40", "best ads", "personal")


@dataclass(frozen=True, kw_only=True)
class GateArgs:
    """Make worlds, or read those that are cached, and print what they pay for."""

    worlds: Annotated[tuple[str, ...], tyro.conf.Positional] = GATED
    """Names of synthetic worlds."""
    seeds: int = 10
    """How many of each, from seed 0 on."""


def worth_of(name: str, seed: int) -> dict[str, Any]:
    """Return a named world's worth, that of a refused one too.

    Raises:
        ValueError: Unknown name, or a world without a known truth.
    """
    try:
        world = load_world(name, seed)
    except ValueError as error:
        if isinstance(error.__cause__, NotPersonalError):
            return error.__cause__.worth
        raise
    if "worth" not in world.ranker_card:
        raise ValueError(f"world {name!r} has no known truth, so its worth is not known")
    return dict(world.ranker_card["worth"])


def gate_row(worth: dict[str, Any]) -> list[float]:
    """Return what `COLUMNS` name: gains under the rankers, of the favourite under the truth."""
    gain = worth["gain"]
    lists = [gain[name]["rankers@1"] for name in COLUMNS[:3]]
    served = [gain[FAVOURITE]["truth@1"], gain["logging"]["truth@40"]]
    return [*lists, *served, worth["best_ads"], worth["personal_share"]]


def main() -> int:
    """Print a line per world; 1 if a gate does not hold, 2 on a user's mistake."""
    args = tyro.cli(GateArgs, description=__doc__)
    if args.seeds < 1:
        print(f"error: --seeds must be at least 1, got {args.seeds}", file=sys.stderr)
        return 2
    print(f"{'world':12}" + "".join(f"{name:>12}" for name in COLUMNS))
    failed = 0
    for name, seed in product(args.worlds, range(args.seeds)):
        try:
            row = gate_row(worth_of(name, seed))
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        holds = row[0] <= MOST_CONSTANT and row[3] >= LEAST_TRUTH
        failed += not holds
        cells = "".join(f"{value:12.2f}" for value in row)
        print(f"{name} {seed:<{11 - len(name)}}{cells}{'' if holds else '  refused'}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
