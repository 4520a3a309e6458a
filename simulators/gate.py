"""Does it matter whom an ad is shown to? `python -m simulators.gate small --seeds 10`."""

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from simulators.make import load_world
from simulators.synthetic.config import GATED
from simulators.synthetic.worth import FAVOURITE, LEAST_TRUTH, MOST_CONSTANT
from simulators.world import World

COLUMNS = ("constant", "signature", "cluster", FAVOURITE, "logging@40", "best ads", "personal")


@dataclass(frozen=True, kw_only=True)
class GateArgs:
    """Make worlds, or read those that are cached, and print what they pay for."""

    worlds: Annotated[tuple[str, ...], tyro.conf.Positional] = GATED
    """Names of synthetic worlds."""
    seeds: int = 10
    """How many of each, from seed 0 on."""


def gate_row(world: World) -> list[float]:
    """Return what `COLUMNS` name: gains under the rankers, of the favourite under the truth."""
    worth = world.ranker_card["worth"]
    gain = worth["gain"]
    lists = [gain[name]["rankers@1"] for name in COLUMNS[:3]]
    served = [gain[FAVOURITE]["truth@1"], gain["logging"]["truth@40"]]
    return [*lists, *served, worth["best_ads"], worth["personal_share"]]


def main() -> int:
    """Print a line per world; 1 if a gate does not hold."""
    args = tyro.cli(GateArgs, description=__doc__)
    print(f"{'world':12}" + "".join(f"{name:>12}" for name in COLUMNS))
    failed = 0
    for name in args.worlds:
        for seed in range(args.seeds):
            row = gate_row(load_world(name, seed))
            holds = row[0] <= MOST_CONSTANT and row[3] >= LEAST_TRUTH
            failed += not holds
            cells = "".join(f"{value:12.2f}" for value in row)
            print(
                f"{name} {seed:<{11 - len(name)}}{cells}{'' if holds else '  refused'}", flush=True
            )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
