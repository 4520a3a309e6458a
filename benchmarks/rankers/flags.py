"""The flags of the suite rankers."""

from benchmarks import flags


class Flags(flags.Flags):
    """Can the reward simulator be trusted? Cards of the frozen rankers, by vertical and age."""
