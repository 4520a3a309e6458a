"""What a policy is trained on: pure functions, and thin TorchRL modules around them."""

from agents.objectives.dpo import DPOLoss, PreferencePairs, dpo_loss, preference_pairs
from agents.objectives.ecpo import ecpo_surrogate
from agents.objectives.gbpo import gbpo_surrogate
from agents.objectives.grpo import GRPOAdvantage, grpo_advantages
from agents.objectives.hepo import (
    HEPOAdvantage,
    HEPOLoss,
    hepo_advantages,
    process_rewards,
    value_loss,
)
from agents.objectives.ppo import LevelGAE, LevelSummedPPOLoss
from agents.objectives.rspo import RSPOLoss, rspo_loss
from agents.objectives.surrogate import candidate_zscore, clipped_surrogate

__all__ = [
    "DPOLoss",
    "GRPOAdvantage",
    "HEPOAdvantage",
    "HEPOLoss",
    "LevelGAE",
    "LevelSummedPPOLoss",
    "PreferencePairs",
    "RSPOLoss",
    "candidate_zscore",
    "clipped_surrogate",
    "dpo_loss",
    "ecpo_surrogate",
    "gbpo_surrogate",
    "grpo_advantages",
    "hepo_advantages",
    "preference_pairs",
    "process_rewards",
    "rspo_loss",
    "value_loss",
]
