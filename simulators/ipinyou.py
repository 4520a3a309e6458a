"""iPinYou's auction logs; lives in `simulators.replay.ipinyou`."""

from simulators.replay.ipinyou import (
    IPinYouError,
    IPinYouRows,
    PctrModel,
    fit_pctr,
    load_ipinyou,
    read_ipinyou,
)

__all__ = [
    "IPinYouError",
    "IPinYouRows",
    "PctrModel",
    "fit_pctr",
    "load_ipinyou",
    "read_ipinyou",
]
