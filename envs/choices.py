"""B rows that step down the code tree, each choosing among its own legal codes.

The ads below a node are one run of the tree's order. A row holds its node's run; the legal codes
are those of the eligible ads in it, and choosing a code narrows the run. Numpy, because a batch
of one must cost little.

Dims: B rows, R rows that are looked at, N ads, L levels, V codes per level.
"""

import numpy as np
from numpy.typing import NDArray

from gpr_rl.data.streams import ragged
from gpr_rl.decoding.trie import CodeTrie, EligibleTrie

Rows = NDArray[np.bool_] | None
"""bool [B], which rows a call concerns; None: all."""


class IllegalActionError(ValueError):
    """A strict environment was given a code that no eligible ad has."""


class Choices:
    """Paths that B rows are choosing, code by code; each row has a level of its own.

    The arrays are this object's state: copy what you pass on.

    Attributes:
        prefix: int64 [B, L], the codes chosen so far, 0 beyond `level`.
        level: int64 [B], how many codes are chosen.
        awaiting: bool [B], True where a choice is due.
        legal_mask: bool [B, V], what may be chosen; all True where none is due.
        ad_id: int64 [B], the ad of a finished path, otherwise -1.
    """

    def __init__(self, trie: CodeTrie, num_rows: int) -> None:
        """Start with no row awaiting a choice; the tree of all ads is on the CPU. See `open`."""
        self.trie = trie
        self.num_rows = num_rows
        self.prefix = np.zeros((num_rows, trie.num_levels), dtype=np.int64)
        self.level = np.zeros(num_rows, dtype=np.int64)
        self.awaiting = np.zeros(num_rows, dtype=np.bool_)
        self.legal_mask = np.ones((num_rows, trie.num_codes), dtype=np.bool_)
        self.ad_id = np.full(num_rows, -1, dtype=np.int64)
        self._node = np.ones(num_rows, dtype=np.int64)
        self._runs = trie.runs
        self._legal = np.zeros((num_rows, trie.num_ads), dtype=np.bool_)

    def open(self, legal: EligibleTrie, rows: Rows = None) -> None:
        """Begin new paths in `rows`. A row without a legal ad awaits no choice.

        `legal` is of all B rows, or of the True ones of `rows` alone (ValueError otherwise).
        """
        chosen = np.ones(self.num_rows, dtype=np.bool_) if rows is None else rows
        index = slice(None) if chosen.all() else np.flatnonzero(chosen)
        root, eligible = legal.root_mask.numpy(), legal.eligible.numpy()
        if legal.batch_size == self.num_rows:
            root, eligible = root[index], eligible[index]
        elif legal.batch_size != chosen.sum():
            raise ValueError(f"legal must be of {self.num_rows} rows, got {legal.batch_size}")
        self._legal[index] = eligible
        self._blank(index, root)

    def _blank(self, index: NDArray[np.int64] | slice, root: NDArray[np.bool_]) -> None:
        self.prefix[index] = 0
        self.level[index] = 0
        self.ad_id[index] = -1
        self._node[index] = 1
        awaiting: NDArray[np.bool_] = np.any(root, axis=1)
        self.awaiting[index] = awaiting
        self.legal_mask[index] = root | ~awaiting[:, None]

    def clear(self, rows: Rows = None) -> None:
        """Let `rows` await no choice and forget their paths."""
        index = slice(None) if rows is None else np.flatnonzero(rows)
        none = np.zeros((1, self.trie.num_codes), dtype=np.bool_)
        self._blank(index, none)

    def close(self, rows: Rows = None) -> None:
        """Let `rows` await no choice; their paths stay."""
        self._end(slice(None) if rows is None else np.flatnonzero(rows))

    def step(
        self,
        action: NDArray[np.int64],
        rows: Rows = None,
        *,
        strict: bool = False,
        request_id: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Choose the next code of those `rows` that await one.

        An illegal code is written down and ends the path: the row awaits nothing then. Actions [B]
        are not read where no choice is due.

        Returns:
            finished: bool [B], True where a legal path is complete now; `ad_id` has its ad.
            illegal: bool [B], True where an illegal code was chosen now.

        Raises:
            ValueError: An action outside [0, V).
            IllegalActionError: An illegal code, if `strict`, before anything has changed; names the
                row's `request_id` [B].
        """
        finished = np.zeros(self.num_rows, dtype=np.bool_)
        illegal = np.zeros(self.num_rows, dtype=np.bool_)
        index = np.flatnonzero(self.awaiting if rows is None else self.awaiting & rows)
        if not len(index):
            return finished, illegal
        code = action[index]
        outside = (code < 0) | (code >= self.trie.num_codes)
        if outside.any():
            raise ValueError(
                f"action must be an integer in [0, {self.trie.num_codes}), "
                f"got {int(code[outside][0])}"
            )
        allowed = self.legal_mask[index, code]
        any_illegal = not allowed.all()
        if any_illegal and strict:
            raise IllegalActionError(self._describe(int(index[~allowed][0]), action, request_id))
        level = self.level[index]
        self.prefix[index, level] = code
        self.level[index] = level + 1
        if any_illegal:
            self._end(index[~allowed])
            illegal[index[~allowed]] = True
            index, code, level = index[allowed], code[allowed], level[allowed]
        for depth in set(level.tolist()):  # mostly one: rows move in step
            here = level == depth
            self._descend(index[here], code[here], depth, finished)
        return finished, illegal

    def _describe(
        self, row: int, action: NDArray[np.int64], request_id: NDArray[np.int64] | None
    ) -> str:
        where = "" if request_id is None else f" in request {int(request_id[row])}"
        return (
            f"action {int(action[row])} is illegal{where} after codes"
            f" {self.prefix[row, : self.level[row]].tolist()};"
            f" legal: {np.flatnonzero(self.legal_mask[row]).tolist()}"
        )

    def _end(self, index: NDArray[np.int64] | slice) -> None:
        self.awaiting[index] = False
        self.legal_mask[index] = True

    def _descend(
        self,
        index: NDArray[np.int64],
        code: NDArray[np.int64],
        level: int,
        finished: NDArray[np.bool_],
    ) -> None:
        """Move rows `index` [R], all at `level`, to the children that `code` [R] leads to."""
        runs = self._runs
        node = runs.child(level, self._node[index], code)
        self._node[index] = node
        edge = runs.edge[level + 1]
        row, place = self._eligible(index, edge[node - 1], edge[node])
        if level + 1 == self.trie.num_levels:
            # dearest first: writing from the last to the first leaves the dearest
            self.ad_id[index[row[::-1]]] = runs.ad_id[place[::-1]]
            self._end(index)
            finished[index] = True
            return
        mask = np.zeros((len(index), self.trie.num_codes), dtype=np.bool_)
        mask.ravel()[row * self.trie.num_codes + runs.code[level + 1].take(place)] = True
        self.legal_mask[index] = mask

    def _eligible(
        self, index: NDArray[np.int64], start: NDArray[np.int64], stop: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (row of `index`, place in tree order) of the eligible ads in R runs, in order."""
        if len(index) == 1:
            first = int(start[0])
            ads = self._runs.ad_id[first : int(stop[0])]
            alive = np.flatnonzero(self._legal[index[0], ads])
            return np.zeros_like(alive), alive + first
        row, place = ragged(start, stop)
        flat = (index * self.trie.num_ads).take(row) + self._runs.ad_id.take(place)
        alive = np.flatnonzero(self._legal.ravel().take(flat))
        return row.take(alive), place.take(alive)
