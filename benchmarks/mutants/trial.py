"""Copies of the tree, and mutants whose tests run in one of them."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.mutants.mutant import Mutant

TIMEOUT_S = 300
"""A mutant whose tests take longer than this is killed: somebody would notice."""
_PYTEST = (sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider")
_PASSED, _FAILED = 0, 1


def copy_tree(source: Path, target: Path) -> None:
    """Copy what git tracks, and what it would, into a folder."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=source, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)


def run_tests(root: Path, tests: Sequence[str]) -> bool:
    """Return whether test files pass in a copy of the tree.

    Raises:
        RuntimeError: pytest neither passed nor failed, e.g. since a file can't be collected.
    """
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    words = [*_PYTEST, *tests]
    try:
        done = subprocess.run(
            words, cwd=root, env=env, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in (_PASSED, _FAILED):
        raise RuntimeError(
            f"tests must pass or fail, got pytest's status {done.returncode} for "
            f"{', '.join(tests)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return done.returncode == _PASSED


def survives(mutant: Mutant, root: Path) -> bool:
    """Return whether all of a mutant's tests pass; the file is whole again whatever happens."""
    before, broken = mutant.texts(root)
    path = root / mutant.file
    try:
        path.write_text(broken, encoding="utf-8")
        return run_tests(root, mutant.tests)
    finally:
        path.write_text(before, encoding="utf-8")


def survivors(mutants: Sequence[Mutant], source: Path) -> list[Mutant]:
    """Return the mutants that survive in a copy of the tree, and tell each one's fate.

    Raises:
        ValueError: The tests fail before anything is broken.
    """
    found = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        copy_tree(source, root)
        tests = sorted({name for mutant in mutants for name in mutant.tests})
        if not run_tests(root, tests):
            raise ValueError(f"tests must pass before code is broken, got {', '.join(tests)}")
        for mutant in mutants:
            alive = survives(mutant, root)
            print(f"{'survived' if alive else 'killed':8}  {mutant}", flush=True)
            found += [mutant] * alive
    return found
