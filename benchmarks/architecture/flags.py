"""The flags of the suite architecture."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from benchmarks import flags
from benchmarks.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Flags(flags.Flags):
    """Tab. 2: which architecture retrieves best? Rivals, additions to a base, and the full HHD."""

    EXTENDABLE: ClassVar = ("methods", "seeds")

    protocol: Literal["time", "leave-one-out", "leave-one-out-20"] = "time"
    """`time` trains on the logged days and tests on later ones; `leave-one-out` tests each user's
    last click or conversion and validates on the one before, with a history of up to 50 ads,
    `leave-one-out-20` of up to 20, as published comparisons do."""

    def complete(self, settings: Settings, before: flags.Stored) -> Settings:
        """Return the settings with the suite's own."""
        return replace(settings, protocol=self.protocol)
