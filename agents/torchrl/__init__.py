"""The policy, the critic and the methods in TorchRL's own loop (`docs/torchrl.md`)."""

from agents.actor_critic import (
    HTECritic,
    PolicyLogits,
    ReferenceLogProbs,
    make_actor,
    make_critic,
)
from agents.code_actor import CodeCritic, CodeLogits, make_code_actor, next_version
from agents.torchrl.groups import GroupCandidates
from agents.training.staleness import StaleError, fresh

__all__ = [
    "CodeCritic",
    "CodeLogits",
    "GroupCandidates",
    "HTECritic",
    "PolicyLogits",
    "ReferenceLogProbs",
    "StaleError",
    "fresh",
    "make_actor",
    "make_code_actor",
    "make_critic",
    "next_version",
]
