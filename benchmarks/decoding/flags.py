"""The flags of the suite decoding."""

from benchmarks import flags


class Flags(flags.RewardFlags):
    """How fast ads are found: catalogues to 10 million, widths, precision, load, transformers."""
