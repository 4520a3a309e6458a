"""One broken line: where it stands, what it becomes, and which tests must fail."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TOLERATED = 0.05
"""Share of a list's mutants that may have a reason to survive."""


@dataclass(frozen=True)
class Mutant:
    """A replacement in one file that changes a published number or what is said of it."""

    file: str
    """From the repository's root."""
    fragment: str
    """Text that the file has exactly once."""
    replacement: str
    tests: tuple[str, ...]
    """Test files of which at least one test must fail."""
    reason: str = ""
    """Why no test can notice it; empty where one must."""

    def __str__(self) -> str:
        return f"{self.file}: {self.fragment!r} -> {self.replacement!r}"

    def texts(self, root: Path) -> tuple[str, str]:
        """Return the file's text as it is and broken; writes nothing.

        Raises:
            ValueError: The fragment is not found exactly once, or nothing would change.
        """
        text = (root / self.file).read_text(encoding="utf-8")
        count = text.count(self.fragment)
        if count != 1:
            raise ValueError(
                f"a mutant's fragment must be found exactly once, got {count} times {self}"
            )
        if self.fragment == self.replacement:
            raise ValueError(f"a mutant must change its file, got {self}")
        return text, text.replace(self.fragment, self.replacement)


def read_mutants(table: str) -> list[Mutant]:
    r"""Return the mutants of a table.

    A file's line is `FILE < TEST TEST`, the tests' files below `tests/`. The mutants under it are
    indented: `OLD ==> NEW`, perhaps with ` ## WHY NO TEST NOTICES`. `\n` is a line break.

    Raises:
        ValueError: A line is neither.
    """
    found: list[Mutant] = []
    file: str = ""
    tests: tuple[str, ...] = ()
    for line in filter(str.strip, table.splitlines()):
        if not line.startswith(" "):
            file, _, names = line.partition(" < ")
            tests = tuple(f"tests/{name}" for name in names.split())
            continue
        change, _, reason = line.partition(" ## ")
        old, arrow, new = change.partition(" ==>")
        if not (arrow and file and tests):
            raise ValueError(f"a mutant's line must be `OLD ==> NEW` below a file, got {line!r}")
        old, new = (text.strip().replace(r"\n", "\n") for text in (old, new))
        found.append(Mutant(file, old, new, tests, reason.strip()))
    return found


def check(mutants: Sequence[Mutant], root: Path) -> None:
    """Check that every mutant can be applied, has tests, is there once, and that few may survive.

    Raises:
        ValueError: What breaks this rule, by name.
    """
    for mutant, count in Counter(mutants).items():
        if count > 1:
            raise ValueError(f"a mutant must be listed once, got {count} times {mutant}")
        mutant.texts(root)
        missing = [name for name in mutant.tests if not (root / name).is_file()]
        if missing:
            raise ValueError(f"a mutant's tests must be files, got {missing} for {mutant}")
    excused = sum(bool(mutant.reason) for mutant in mutants)
    if excused > TOLERATED * len(mutants):
        raise ValueError(
            f"at most {TOLERATED:.0%} of the mutants may have a reason to survive, got {excused} "
            f"of {len(mutants)}"
        )
