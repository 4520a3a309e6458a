"""What a policy is trained on: pure functions, and thin TorchRL modules around them."""

from agents.objectives.dpo import DPOLoss, PreferencePairs, dpo_loss, preference_pairs
from agents.objectives.grpo import GRPOAdvantage, grpo_advantages
from agents.objectives.hepo import (
    HEPOAdvantage,
    HEPOLoss,
    hepo_advantages,
    process_rewards,
    value_loss,
)
from agents.objectives.ppo import LevelGAE, LevelSummedPPOLoss
from agents.objectives.surrogate import candidate_zscore, clipped_surrogate

__all__ = [
    "DPOLoss",
    "GRPOAdvantage",
    "HEPOAdvantage",
    "HEPOLoss",
    "LevelGAE",
    "LevelSummedPPOLoss",
    "PreferencePairs",
    "candidate_zscore",
    "clipped_surrogate",
    "dpo_loss",
    "grpo_advantages",
    "hepo_advantages",
    "preference_pairs",
    "process_rewards",
    "value_loss",
]
