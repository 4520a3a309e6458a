"""The Heterogeneous Hierarchical Decoder and its parts."""

from gpr_rl.models.config import HHDConfig
from gpr_rl.models.decoder import Context
from gpr_rl.models.hhd import HHD, Unvalued
from gpr_rl.models.hte import HTEOutput

__all__ = ["HHD", "Context", "HHDConfig", "HTEOutput", "Unvalued"]
