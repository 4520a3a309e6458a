"""Rewards: plain functions of an outcome, batched over candidates (GPR Eq. 5).

Imports torch only.
Start with `outcome.Outcome`; `shipped` holds the built-in ones, `rewards` names and mixes them.
"""

from simulators.rewards.outcome import Outcome, ecpm
from simulators.rewards.rewards import (
    RewardError,
    RewardFunction,
    RewardMix,
    RewardSpec,
    evaluate_reward,
    load_reward,
    register_reward,
)
from simulators.rewards.shipped import final_value

__all__ = [
    "Outcome",
    "RewardError",
    "RewardFunction",
    "RewardMix",
    "RewardSpec",
    "ecpm",
    "evaluate_reward",
    "final_value",
    "load_reward",
    "register_reward",
]
