"""Is a vector environment the same as single ones with the same seeds?

Imports Gymnasium and NumPy only: any Gymnasium environments can be checked.
Start with `vector.check_vector_env`; `differences` compares what two environments returned.
"""

from envs.check.differences import VectorMismatchError
from envs.check.vector import (
    check_vector_env,
    legal_actions,
    sampled_actions,
)

__all__ = [
    "VectorMismatchError",
    "check_vector_env",
    "legal_actions",
    "sampled_actions",
]
