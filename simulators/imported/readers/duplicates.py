"""Rows that were seen before, in bounded memory: a 64-bit hash of each row, 8 bytes a row.

With n rows, a row is wrongly taken for one seen before with probability n^2 / 2^65: below 1e-6 for
5 million rows, 3 % for one row of a billion.

Dims: n rows of a piece.
"""

import numpy as np
from numpy.typing import NDArray

HashArray = NDArray[np.uint64]


class SeenHashes:
    """A growing set of hashes in sorted arrays, each more than twice as long as the next."""

    def __init__(self) -> None:
        self._arrays: list[HashArray] = []

    def add(self, hashes: HashArray) -> NDArray[np.bool_]:
        """Return which were not in the set, the first of equal ones only, and add them."""
        unique, first = np.unique(hashes, return_index=True)
        known = np.zeros(len(unique), dtype=bool)
        for array in self._arrays:
            at = np.searchsorted(array, unique)
            known |= array[np.minimum(at, len(array) - 1)] == unique
        is_new = np.zeros(len(hashes), dtype=bool)
        is_new[first[~known]] = True
        if is_new.any():
            self._arrays.append(unique[~known])
        while len(self._arrays) > 1 and len(self._arrays[-2]) < 2 * len(self._arrays[-1]):
            last = self._arrays.pop()
            merged = np.concatenate([self._arrays.pop(), last])
            merged.sort(kind="stable")
            self._arrays.append(merged)
        return is_new
