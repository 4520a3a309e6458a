"""Stable hashes of business keys: the same key has the same code on every machine and in every run.

Dims: n rows.
"""

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

Keys: TypeAlias = Sequence[Hashable] | Mapping[str, Sequence[Hashable]] | pd.DataFrame
"""A string or a tuple of strings per row (other values count as what `str` writes); or columns by
name (a table has them), which are zipped to tuples in the order of their sorted names."""


def read_keys(keys: Keys, num_rows: int) -> list[tuple[str, ...]]:
    """Return the keys as a tuple of strings per row.

    Values that are not strings are written as `str` writes them.

    Raises:
        ValueError: No columns, another number of rows than `num_rows`, or a missing value.
    """
    if isinstance(keys, pd.DataFrame):
        keys = {str(name): column.tolist() for name, column in keys.items()}
    if isinstance(keys, Mapping):
        if not keys:
            raise ValueError("keys has no columns")
        for name, column in keys.items():
            _check_length(f"keys[{name!r}]", column, num_rows)
        rows: list = list(zip(*(keys[name] for name in sorted(keys)), strict=True))
    else:
        if isinstance(keys, str):
            raise ValueError(f"keys must have one key per row, got the string {keys!r}")
        _check_length("keys", keys, num_rows)
        rows = [key if isinstance(key, tuple | list) else (key,) for key in keys]
    for number, row in enumerate(rows):
        if any(part is None or part != part for part in row):  # NaN differs from itself
            raise ValueError(f"the key of row {number} has a missing value: {row}")
    return [tuple(map(str, row)) for row in rows]


def _check_length(name: str, values: Sequence, num_rows: int) -> None:
    if len(values) != num_rows:
        raise ValueError(f"{name} must have {num_rows} entries, one per row, got {len(values)}")


def hash_keys(keys: Sequence[tuple[str, ...]], num_codes: int) -> NDArray[np.int64]:
    """Return blake2b(key) mod num_codes, int64 [n]; parts are told apart by their lengths."""
    return np.array([_hash(_bytes_of(key)) % num_codes for key in keys], dtype=np.int64)


def hash_content(x: Tensor, num_codes: int) -> NDArray[np.int64]:
    """Return the same of each row's own numbers, float32 [n, d] in little-endian bytes."""
    rows = np.ascontiguousarray(x.cpu().numpy() + np.float32(0.0), dtype="<f4")  # -0.0 is 0.0
    return np.array([_hash(row.tobytes()) % num_codes for row in rows], dtype=np.int64)


def _bytes_of(key: tuple[str, ...]) -> bytes:
    parts = [part.encode() for part in key]
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
