"""What changes the result of a training run, beside its seed: every dial of every method."""

from dataclasses import dataclass

from agents.objectives import MethodConfigs


@dataclass(frozen=True, kw_only=True)
class TrainConfig(MethodConfigs):
    """One training run. Every default that the paper leaves open says so.

    What all methods share is in `SharedConfig`; what only some read is beside their loss.
    """
