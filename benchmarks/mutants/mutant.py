"""One broken line: where it stands, what it becomes, and which tests must fail."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A replacement in one file that changes what a reader would be told."""

    file: str
    """From the repository's root."""
    fragment: str
    """Text that the file has exactly once."""
    replacement: str
    tests: tuple[str, ...]
    """Test files of which at least one test must fail."""
    reason: str = ""
    """Why no test can notice it, if none can: survivors with a reason count as explained."""

    def __str__(self) -> str:
        return f"{self.file}: {self.fragment!r} -> {self.replacement!r}"

    def apply(self, root: Path) -> str:
        """Break the file under a folder and return its text before.

        Raises:
            ValueError: The fragment is not found exactly once, or nothing would change.
        """
        path = root / self.file
        text = path.read_text(encoding="utf-8")
        count = text.count(self.fragment)
        if count != 1:
            raise ValueError(
                f"a mutant's fragment must be found exactly once, got {count} times {self}"
            )
        if self.fragment == self.replacement:
            raise ValueError(f"a mutant must change its file, got {self}")
        path.write_text(text.replace(self.fragment, self.replacement), encoding="utf-8")
        return text


def mutants_of(
    file: str, tests: str | tuple[str, ...], changes: list[tuple[str, str]]
) -> list[Mutant]:
    """Return the mutants of one file, all held by the same test files."""
    files = (tests,) if isinstance(tests, str) else tests
    return [Mutant(file=file, fragment=old, replacement=new, tests=files) for old, new in changes]


def check(mutants: list[Mutant], root: Path) -> None:
    """Check that every mutant can be applied, that its tests exist, and that none is there twice.

    Raises:
        ValueError: The first that breaks this rule, by name.
    """
    for mutant, count in Counter(mutants).items():
        if count > 1:
            raise ValueError(f"a mutant must be listed once, got {count} times {mutant}")
        before = mutant.apply(root)
        (root / mutant.file).write_text(before, encoding="utf-8")
        missing = [name for name in mutant.tests if not (root / name).is_file()]
        if missing or not mutant.tests:
            raise ValueError(f"a mutant's tests must be files, got {missing} for {mutant}")
