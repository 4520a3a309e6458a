"""The flags of the suite off_policy."""

from dataclasses import dataclass

from benchmarks import flags


@dataclass(frozen=True, kw_only=True)
class Flags(flags.RewardFlags):
    """Off-policy evaluation against the known truth: which estimator can be trusted, how far."""
