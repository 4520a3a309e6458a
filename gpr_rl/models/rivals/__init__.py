"""Models that the HHD is compared with (GPR Tab. 2); all are `gpr_rl.models.retrieval.Retriever`s.

`TIGER` needs the optional package transformers, the others need nothing further.
"""

from gpr_rl.models.rivals.hstu import HSTU, HSTUConfig
from gpr_rl.models.rivals.onerec import OneRec, OneRecConfig
from gpr_rl.models.rivals.popularity import Popularity
from gpr_rl.models.rivals.sasrec import SASRec, SASRecConfig
from gpr_rl.models.rivals.tiger import TIGER, TIGERConfig

__all__ = [
    "HSTU",
    "TIGER",
    "HSTUConfig",
    "OneRec",
    "OneRecConfig",
    "Popularity",
    "SASRec",
    "SASRecConfig",
    "TIGERConfig",
]
