"""What users pass to vector environments, checked and in one form.

Dims: B environments (rows).
"""

import operator
from collections.abc import Iterable, Sequence
from typing import Any, SupportsFloat

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from gpr_rl.checks import check_at_least

Seeds = int | np.integer | Sequence[int | None] | NDArray[np.integer] | None
"""One seed for all rows, one per row, or none."""
_NO_SEED = np.full((), None, dtype=np.object_)
_SEED_LIMIT = 2**63
_as_integers = np.frompyfunc(operator.index, 1, 1)


def integer(name: str, value: object) -> int:
    """Return a Python or numpy integer as int; ValueError for anything else."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise ValueError(f"{name} must be an integer, got {value!r}")


def positive_integer(name: str, value: object) -> int:
    """Return a Python or numpy integer as int; ValueError unless it is one and at least 1."""
    number = integer(name, value)
    check_at_least(1, **{name: number})
    return number


def flag(name: str, value: object) -> bool:
    """Return True or False; ValueError for anything else."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def real(name: str, value: object) -> float:
    """Return a number as float; ValueError for anything else."""
    if isinstance(value, str | bool) or not isinstance(value, SupportsFloat):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return float(value)


def reals(name: str, values: object) -> tuple[float, ...]:
    """Return a sequence of numbers as a tuple of floats; ValueError for anything else."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{name} must be a sequence of numbers, got {values!r}")
    return tuple(real(name, value) for value in values)


def one_of(name: str, value: object, known: Sequence[str]) -> Any:
    """Return a value that is one of those known; ValueError for another."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return value


def known_mode(mode: AutoresetMode | str) -> AutoresetMode:
    """Return the mode of this name (`"SAME_STEP"`) or value (`"SameStep"`), in any case."""
    for known in AutoresetMode:
        if mode is known or str(mode).lower() in (known.name.lower(), known.value.lower()):
            return known
    names = ", ".join(known.name for known in AutoresetMode)
    raise ValueError(f"autoreset_mode must be one of {names}, got {mode!r}")


def row_seeds(
    seed: Seeds, num_rows: int, candidates: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the seed of each row, int64 [B] in [0, 2^63), and which rows were given one.

    A seed s gives row i s + i // candidates; a sequence is taken as it is, None (here or in it)
    gives none. Seeds of 2^63 and more are taken modulo 2^63, as the single environments do.

    Raises:
        ValueError: A sequence of another length; a seed that is negative or no integer.
    """
    if seed is None:
        return np.zeros(num_rows, dtype=np.int64), np.zeros(num_rows, dtype=np.bool_)
    if np.ndim(seed) == 0:  # type: ignore[arg-type]
        values = (np.arange(num_rows) // candidates).astype(np.object_) + integer("seed", seed)
    else:
        values = np.array(seed, dtype=np.object_)
    if values.shape != (num_rows,):
        raise ValueError(f"seed must have {num_rows} entries, one per row, got {values.shape}")
    given = np.not_equal(values, _NO_SEED).astype(np.bool_)
    try:
        seeds = _as_integers(values[given])
    except TypeError:
        raise ValueError(f"seeds must be integers, got {seed}") from None
    if (seeds < 0).any():
        raise ValueError(f"seeds must be non-negative, got {seed}")
    result = np.zeros(num_rows, dtype=np.int64)
    result[given] = (seeds % _SEED_LIMIT).astype(np.int64)
    return result, given


def reset_rows(mask: object, num_rows: int) -> NDArray[np.bool_]:
    """Return `options["reset_mask"]`, bool [B], held to `SyncVectorEnv`'s rules.

    Raises:
        TypeError: Not a numpy array of bool.
        ValueError: Another shape, or nowhere True.
    """
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        kind = mask.dtype if isinstance(mask, np.ndarray) else type(mask).__name__
        raise TypeError(f"options['reset_mask'] must be a numpy array of bool, got {kind}")
    if mask.shape != (num_rows,):
        raise ValueError(f"options['reset_mask'] must have shape ({num_rows},), got {mask.shape}")
    if not mask.any():
        raise ValueError("options['reset_mask'] must be True for at least one row")
    return mask


def row_integers(name: str, value: object, num_rows: int) -> NDArray[np.int64]:
    """Return an integer of all rows, or one per row, as int64 [B]; ValueError for anything else."""
    array = np.asarray(value)
    if array.shape not in ((), (num_rows,)) or array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be an integer or [{num_rows}], got {value!r}")
    return np.broadcast_to(array, num_rows).astype(np.int64)


def row_actions(actions: object, num_rows: int) -> NDArray[np.int64]:
    """Return actions as int64 [B]; ValueError for another shape or for what are no integers."""
    array = np.asarray(actions)
    if array.shape != (num_rows,) or array.dtype.kind not in "iu":
        raise ValueError(
            f"actions must be integers of shape ({num_rows},), got {array.dtype} {array.shape}"
        )
    return array.astype(np.int64)
