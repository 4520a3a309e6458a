"""The flags of the suite environment."""

from benchmarks import flags


class Flags(flags.RewardFlags):
    """How fast the environments are: code choices per second by interface, batch and catalogue."""
