"""The flags of the suite environment."""

from dataclasses import dataclass

from benchmarks import flags


@dataclass(frozen=True, kw_only=True)
class Flags(flags.RewardFlags):
    """How fast the environments are: code choices per second by interface, batch and catalogue."""
