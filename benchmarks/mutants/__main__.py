"""Which broken lines would no test notice? `python -m benchmarks.mutants --help`."""

import random
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

import tyro

from benchmarks.mutants.mathematics import MATHEMATICS
from benchmarks.mutants.mutant import Mutant, check
from benchmarks.mutants.reports import REPORTS
from benchmarks.mutants.trial import copy_tree, run_tests, survives

MUTANTS = [*REPORTS, *MATHEMATICS]
TOLERATED = 0.05
"""Share of mutants that may survive unexplained."""
ROOT = Path(__file__).resolve().parents[2]


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


def verdict(survivors: Sequence[Mutant], num_tried: int) -> int:
    """Return the exit status: 1 if too many survive without a reason."""
    unexplained = sum(not mutant.reason for mutant in survivors)
    return int(unexplained > TOLERATED * num_tried)


def try_all(mutants: Sequence[Mutant], num_workers: int) -> list[Mutant]:
    """Return the survivors; every copy of the tree serves one worker at a time.

    Raises:
        ValueError: A mutant can't be applied, or its tests fail without it.
    """
    with tempfile.TemporaryDirectory() as folder:
        copies: Queue[Path] = Queue()
        for number in range(num_workers):
            copy_tree(ROOT, Path(folder) / str(number))
            copies.put(Path(folder) / str(number))
        check(list(mutants), Path(folder) / "0")
        tests = sorted({name for mutant in mutants for name in mutant.tests})
        if not run_tests(Path(folder) / "0", tests):
            raise ValueError(f"tests must pass before code is broken, got {', '.join(tests)}")

        def try_one(mutant: Mutant) -> bool:
            root = copies.get()
            try:
                alive = survives(mutant, root)
            finally:
                copies.put(root)
            print(f"{'survived' if alive else 'killed':8}  {mutant}", flush=True)
            return alive

        with ThreadPoolExecutor(num_workers) as pool:
            return [
                m for m, alive in zip(mutants, pool.map(try_one, mutants), strict=True) if alive
            ]


def main(arguments: Arguments) -> int:
    """Try the mutants, print the survivors and return the exit status."""
    mutants = chosen(MUTANTS, arguments)
    survivors = try_all(mutants, arguments.workers)
    print(f"\n{len(mutants) - len(survivors)} of {len(mutants)} killed")
    for mutant in survivors:
        print(f"survived: {mutant}{f' ({mutant.reason})' if mutant.reason else ''}")
    return verdict(survivors, len(mutants))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=Arguments.__doc__)))
