"""Where what two vector environments returned differs, named by key and row.

Dims: B environments (rows).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class VectorMismatchError(AssertionError):
    """A vector environment is not the same as the single environments it stands for."""


def compare(got: Any, want: Any, path: str, tolerance: float, *, check_dtype: bool = True) -> None:
    """Raise unless two batches (arrays [B, ...], or dictionaries and tuples of them) are equal.

    The `VectorMismatchError` names the entry below `path`, the row and both values. The tolerance
    of floats is absolute and relative, 0 for equal bits; NaN equals NaN. Without `check_dtype` it
    suffices that both are floats, or neither is.
    """
    if isinstance(want, Mapping):
        _compare_keys(got, want, path)
        for key in want:
            compare(got[key], want[key], f"{path}[{key!r}]", tolerance, check_dtype=check_dtype)
    elif isinstance(want, (tuple, list)):
        if not isinstance(got, (tuple, list)) or len(got) != len(want):
            raise VectorMismatchError(f"{path} must have {len(want)} entries, got {got!r}")
        for number, (left, right) in enumerate(zip(got, want, strict=True)):
            compare(left, right, f"{path}[{number}]", tolerance, check_dtype=check_dtype)
    else:
        rows = np.arange(len(want)) if np.ndim(want) else np.zeros(0, dtype=np.int64)
        _compare_arrays(np.asarray(got), np.asarray(want), path, tolerance, rows, check_dtype)


def compare_infos(got: Any, want: Mapping[str, Any], path: str, tolerance: float) -> None:
    """Raise, as `compare` does, unless two batched infos are equal where their masks are True.

    They are laid out as `gymnasium.vector.VectorEnv` does: arrays [B, ...] or such dictionaries,
    each with a mask `_key`, bool [B].
    """
    _compare_keys(got, want, path)
    masks = {key for key in want if key[:1] == "_" and key[1:] in want}
    for key in masks:
        compare(got[key], want[key], f"{path}[{key!r}]", 0.0)
    for key in set(want) - masks:
        name, rows = f"{path}[{key!r}]", np.flatnonzero(want[f"_{key}"])
        if isinstance(want[key], dict):
            compare_infos(got[key], want[key], name, tolerance)
        else:
            left, right = np.asarray(got[key]), np.asarray(want[key])
            if left.shape[:1] != right.shape[:1]:
                raise VectorMismatchError(f"{name} has shape {left.shape}, expected {right.shape}")
            _compare_arrays(left[rows], right[rows], name, tolerance, rows, True)


def find_shared_memory(before: Any, now: Any) -> tuple[str, str] | None:
    """Return the names of the first two arrays in two results that share memory, or None."""
    old = list(_leaves(named(before), ""))
    for name, array in _leaves(named(now), ""):
        for old_name, old_array in old:
            if np.shares_memory(array, old_array):
                return old_name, name
    return None


def overwrite(result: Any) -> None:
    """Change every number of a result in place, and empty its dictionaries."""
    for _, array in list(_leaves(named(result), "")):
        if array.flags.writeable and array.dtype.kind in "biufc":
            array[...] = ~array if array.dtype.kind == "b" else 1 - array
    for part in result:
        if isinstance(part, dict):
            part.clear()


def named(result: Any) -> dict[str, Any]:
    """Return what `reset` (2 entries) or `step` (5) returned by name."""
    names = ("observation", "reward", "terminated", "truncated", "infos")
    return dict(zip(names if len(result) == 5 else (names[0], names[-1]), result, strict=True))


def _compare_keys(got: Any, want: Mapping, path: str) -> None:
    if not isinstance(got, Mapping):
        raise VectorMismatchError(f"{path} must be a dictionary, got {type(got).__name__}")
    missing, extra = sorted(set(want) - set(got)), sorted(set(got) - set(want))
    if missing:
        raise VectorMismatchError(f"{path} has no key {missing[0]!r}; it has {sorted(got)}")
    if extra:
        raise VectorMismatchError(
            f"{path} has a key {extra[0]!r} that single environments do not have"
        )


def _compare_arrays(
    got: NDArray,
    want: NDArray,
    path: str,
    tolerance: float,
    rows: NDArray[np.integer],
    check_dtype: bool,
) -> None:
    """Compare arrays [n, ...] whose entries are those of `rows`, int [n]."""
    if got.shape != want.shape:
        raise VectorMismatchError(f"{path} has shape {got.shape}, expected {want.shape}")
    if got.dtype != want.dtype if check_dtype else (got.dtype.kind == "f") != (want.dtype == float):
        raise VectorMismatchError(f"{path} has dtype {got.dtype}, expected {want.dtype}")
    if want.dtype == np.object_ and want.ndim:
        for row, left, right in zip(rows, got, want, strict=True):
            compare(left, right, f"{path}, row {row}", tolerance)
        return
    if want.dtype.kind in "fc":
        equal = np.isclose(got, want, rtol=tolerance, atol=tolerance, equal_nan=True)
    else:
        equal = np.asarray(got == want)
    if not equal.all():
        place = tuple(int(i) for i in np.argwhere(~equal)[0])
        where = ""
        if place:
            where = f", row {rows[place[0]]}" + (f" at {place[1:]}" if place[1:] else "")
        raise VectorMismatchError(
            f"{path}{where}: the vector environment gave {got[place]}, single environments gave "
            f"{want[place]}"
        )


def _leaves(value: Any, path: str) -> Iterator[tuple[str, NDArray]]:
    """Yield every array of numbers in a nested value, with its name."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(part, f"{path}[{key!r}]" if path else str(key))
    elif isinstance(value, (tuple, list)):
        for number, part in enumerate(value):
            yield from _leaves(part, f"{path}[{number}]")
    elif isinstance(value, np.ndarray):
        if value.dtype == np.object_:
            yield from _leaves(list(value.ravel()), path)
        elif value.ndim:
            yield path, value
