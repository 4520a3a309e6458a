"""Environments over a world of users, ads and frozen rankers. Importing this registers the ids."""

from importlib import import_module
from typing import TYPE_CHECKING

import gymnasium

if TYPE_CHECKING:
    from envs.check import check_vector_env as check_vector_env
    from envs.gym import AdDayEnv as AdDayEnv
    from envs.gym import AdRequestEnv as AdRequestEnv
    from envs.spaces import request_from_observation as request_from_observation
    from envs.torchrl import AdDayTorchEnv as AdDayTorchEnv
    from envs.torchrl import AdRequestTorchEnv as AdRequestTorchEnv
    from envs.vector import AdDayVectorEnv as AdDayVectorEnv
    from envs.vector import AdRequestVectorEnv as AdRequestVectorEnv

_HOME = {
    "AdDayEnv": "envs.gym",
    "AdDayTorchEnv": "envs.torchrl",
    "AdDayVectorEnv": "envs.vector",
    "AdRequestEnv": "envs.gym",
    "AdRequestTorchEnv": "envs.torchrl",
    "AdRequestVectorEnv": "envs.vector",
    "check_vector_env": "envs.check",
    "request_from_observation": "envs.spaces",
}
__all__ = [*_HOME, "register_environments"]


def register_environments() -> None:
    """Register the ids with Gymnasium; ids that are there already stay as they are."""
    for kind in ("AdDay", "AdRequest"):
        if f"gpr_rl/{kind}-v0" not in gymnasium.registry:
            gymnasium.register(
                id=f"gpr_rl/{kind}-v0",
                entry_point=f"envs.gym:{kind}Env",
                vector_entry_point=f"envs.vector:{kind}VectorEnv",
            )


def __getattr__(name: str) -> object:
    """Import a class on first use: TorchRL takes seconds that `gymnasium.make` need not wait."""
    if name not in _HOME:
        raise AttributeError(f"module 'envs' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


register_environments()
