"""What a policy is trained on: pure functions, and thin TorchRL modules around them."""

from agents.critic import value_loss
from agents.modules.rollout_loss import RolloutLoss
from agents.objectives.process_rewards import (
    popularity_deltas,
    potential_rewards,
    prefix_popularity,
    process_rewards,
    shuffle_popularity,
)
from agents.objectives.surrogate import SurrogateLoss, clipped_surrogate
from agents.objectives.terminal import candidate_zscore, terminal_advantage

# isort: off
# The methods, in the order of `method_names`: a new one is a file of this folder and a line here.
from agents.objectives.hepo import HEPOAdvantage, HEPOLoss, hepo_advantages
from agents.objectives.ppo import LevelGAE, LevelSummedPPOLoss
from agents.objectives.grpo import GRPOAdvantage, grpo_advantages
from agents.objectives.reinforce import (
    LeaveOneOutAdvantage,
    leave_one_out_advantages,
    reinforce_surrogate,
)
from agents.objectives.raft import RAFTLoss, raft_loss
from agents.objectives.dpo import (
    DPOLoss,
    PreferencePairs,
    SDPOLoss,
    dpo_loss,
    preference_pairs,
    sdpo_loss,
)
from agents.objectives.rspo import RSPOLoss, rspo_loss, rspo_losses
from agents.objectives.unified import UnifiedLoss, unified_loss, unified_weights
from agents.objectives.ecpo import ecpo_surrogate
from agents.objectives.gbpo import gbpo_surrogate
# isort: on

__all__ = [
    "DPOLoss",
    "GRPOAdvantage",
    "HEPOAdvantage",
    "HEPOLoss",
    "LeaveOneOutAdvantage",
    "LevelGAE",
    "LevelSummedPPOLoss",
    "PreferencePairs",
    "RAFTLoss",
    "RSPOLoss",
    "RolloutLoss",
    "SDPOLoss",
    "SurrogateLoss",
    "UnifiedLoss",
    "candidate_zscore",
    "clipped_surrogate",
    "dpo_loss",
    "ecpo_surrogate",
    "gbpo_surrogate",
    "grpo_advantages",
    "hepo_advantages",
    "leave_one_out_advantages",
    "popularity_deltas",
    "potential_rewards",
    "preference_pairs",
    "prefix_popularity",
    "process_rewards",
    "raft_loss",
    "reinforce_surrogate",
    "rspo_loss",
    "rspo_losses",
    "sdpo_loss",
    "shuffle_popularity",
    "terminal_advantage",
    "unified_loss",
    "unified_weights",
    "value_loss",
]
