"""The flags of the suite scaling."""

from typing import ClassVar

from benchmarks import flags


class Flags(flags.Flags):
    """Fig. 5: how the loss falls with the size of the HHD, from 10,000 to 10 million parameters."""

    EXTENDABLE: ClassVar = ("methods", "seeds")
