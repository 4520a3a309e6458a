"""How many events of each kind a cell saw before a moment, by binary search.

Dims: n events, Q queries, K kinds of events.
"""

import numpy as np
from numpy.typing import NDArray

from gpr_rl.data.streams import IntArray, search


class CountIndex:
    """Events sorted by (cell, time), with running counts per kind within a cell.

    A cell is whatever events are counted by, for instance a user and a group of ads. Cells, times
    and kinds are [n] each, not negative; kinds lie below `num_kinds`. Memory is 8 bytes per event
    and 1, 2 or 4 per event and kind.

    Raises:
        ValueError: Cells and times do not fit into one 64-bit key.
    """

    def __init__(self, cell: IntArray, time: IntArray, kind: NDArray, num_kinds: int) -> None:
        self._span = int(time.max(initial=0)) + 2
        if int(cell.max(initial=0)) >= 2**63 // self._span - 1:
            raise ValueError(
                f"cell numbers must lie below {2**63 // self._span - 1}, got {int(cell.max())}"
            )
        key = cell * self._span + time
        order = np.argsort(key, kind="stable")
        self._key, kind = key[order], kind[order]
        del key, order  # with millions of events each array counts
        cell = self._key // self._span
        opens = np.flatnonzero(np.r_[True, cell[1:] != cell[:-1]][: len(cell)])
        size = np.diff(np.r_[opens, len(cell)])
        dtype = np.min_scalar_type(int(size.max(initial=0)))
        self._count = np.empty((len(cell), num_kinds), dtype=dtype)
        del cell
        for column in range(num_kinds):
            running = np.cumsum(kind == column)
            before = np.r_[0, running][opens]
            self._count[:, column] = running - np.repeat(before, size)

    def before(self, cell: IntArray, time: IntArray) -> IntArray:
        """Return the counts of events in `cell` [...] strictly before `time`, int64 [..., K]."""
        first = cell * self._span
        within = np.minimum(np.maximum(time, 0), self._span - 1)  # np.clip takes twice as long
        last = search(self._key, first + within) - 1
        if not len(self._key):
            return np.zeros((*last.shape, self._count.shape[1]), dtype=np.int64)
        seen = (last >= 0) & (self._key[last] >= first)
        return self._count[last] * seen[..., None].astype(np.int64)
