"""What changes the result of a training run, beside its seed: every dial of every method."""

from dataclasses import dataclass

from agents.objectives.dpo import DPOConfig
from agents.objectives.grpo import GRPOConfig
from agents.objectives.hepo import HEPOConfig
from agents.objectives.ppo import PPOConfig
from agents.objectives.raft import RAFTConfig
from agents.objectives.rspo import RSPOConfig
from agents.objectives.unified import UnifiedConfig
from agents.registry import with_every_dial


@with_every_dial
@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    HEPOConfig, PPOConfig, GRPOConfig, RAFTConfig, DPOConfig, UnifiedConfig, RSPOConfig
):
    """One training run. Every default that the paper leaves open says so.

    What all methods share is in `SharedConfig`; what only some read is beside their loss.
    """
