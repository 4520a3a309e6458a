"""The methods one can choose, and every dial that they have: the door to `registry`.

A built-in method is one file of `agents.objectives`, which holds its loss, its dials and its
registration, and a line in that folder's `__init__`.
"""

from agents.registry import (
    DEFAULT_SPACE,
    Method,
    MethodFactory,
    SearchSpace,
    default_learning_rate,
    make_method,
    method_config,
    method_names,
    register_method,
    search_space,
)
from agents.train_config import TrainConfig

__all__ = [
    "DEFAULT_SPACE",
    "Method",
    "MethodFactory",
    "SearchSpace",
    "TrainConfig",
    "default_learning_rate",
    "make_method",
    "method_config",
    "method_names",
    "register_method",
    "search_space",
]
