"""The flags of the suite rankers."""

from dataclasses import dataclass

from benchmarks import flags


@dataclass(frozen=True, kw_only=True)
class Flags(flags.Flags):
    """Can the reward simulator be trusted? Cards of the frozen rankers, by vertical and age."""
