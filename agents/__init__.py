"""Reinforcement learning of the policy: actor and critic, rollouts, objectives, the loop."""

from agents.actor_critic import HTECritic, PolicyLogits, make_actor, make_policy_head
from agents.code_actor import CodeCritic, CodeLogits, make_code_actor
from agents.methods import Method, method_names, register_method
from agents.objectives import (
    DPOLoss,
    GRPOAdvantage,
    HEPOAdvantage,
    HEPOLoss,
    LeaveOneOutAdvantage,
    LevelGAE,
    LevelSummedPPOLoss,
    PreferencePairs,
    RAFTLoss,
    RSPOLoss,
    SDPOLoss,
    SurrogateLoss,
    UnifiedLoss,
)
from agents.rollout import NonFiniteError, RolloutConfig, rollout
from agents.train_config import TrainConfig
from agents.trainer import train

__all__ = [
    "CodeCritic",
    "CodeLogits",
    "DPOLoss",
    "GRPOAdvantage",
    "HEPOAdvantage",
    "HEPOLoss",
    "HTECritic",
    "LeaveOneOutAdvantage",
    "LevelGAE",
    "LevelSummedPPOLoss",
    "Method",
    "NonFiniteError",
    "PolicyLogits",
    "PreferencePairs",
    "RAFTLoss",
    "RSPOLoss",
    "RolloutConfig",
    "SDPOLoss",
    "SurrogateLoss",
    "TrainConfig",
    "UnifiedLoss",
    "make_actor",
    "make_code_actor",
    "make_policy_head",
    "method_names",
    "register_method",
    "rollout",
    "train",
]
