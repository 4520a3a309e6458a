"""Which broken lines would no test notice? `python -m benchmarks.mutants --help`."""

import random
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import tyro

from benchmarks.mutants.mutant import Mutant, check, read_mutants
from benchmarks.mutants.trial import survivors

ROOT = Path(__file__).resolve().parents[2]
TABLES = sorted((ROOT / "tests" / "mutants").glob("*.txt"))
MUTANTS = [mutant for table in TABLES for mutant in read_mutants(table.read_text("utf-8"))]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Break one line at a time and list what its tests don't notice."""

    sample: int = 0
    """Try only this many, drawn with `seed`; 0: all."""
    only: str = ""
    """Try only mutants whose file, fragment or tests hold this text."""
    workers: int = 1
    """Copies of the tree in which tests run at the same time."""
    seed: int = 0
    """Of the sample."""


def chosen(mutants: Sequence[Mutant], arguments: Arguments) -> list[Mutant]:
    """Return the mutants to try, those of the same tests together.

    Raises:
        ValueError: No mutant holds the text.
    """
    found = [m for m in mutants if arguments.only in f"{m} {' '.join(m.tests)}"]
    if not found:
        raise ValueError(f"--only must be part of a mutant, got {arguments.only!r}")
    if 0 < arguments.sample < len(found):
        found = random.Random(arguments.seed).sample(found, arguments.sample)
    return sorted(found, key=lambda m: m.tests)


def main(arguments: Arguments, mutants: Sequence[Mutant] = MUTANTS, root: Path = ROOT) -> int:
    """Try mutants, print the survivors and return 1 if one of them has no reason, else 0."""
    check(mutants, root)
    tried = chosen(mutants, arguments)
    workers = min(arguments.workers, len(tried))
    cuts = [len(tried) * k // workers for k in range(workers + 1)]
    shares = [tried[start:stop] for start, stop in pairwise(cuts)]  # few share a test file
    with ThreadPoolExecutor(workers) as pool:
        alive = [m for found in pool.map(lambda s: survivors(s, root), shares) for m in found]
    print(f"\n{len(tried) - len(alive)} of {len(tried)} killed")
    for mutant in alive:
        print(f"survived: {mutant} ({mutant.reason or 'no reason given'})")
    return int(any(not mutant.reason for mutant in alive))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=Arguments.__doc__)))
