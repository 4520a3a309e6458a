"""From semantic IDs to items and back, and what happens where several items share a path.

The paper is silent on the latter (`docs/decisions.md`). Dims: n items, L levels.
"""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

RESOLVE = ("highest_value", "suffix")
"""`highest_value`: a shared path stands for the eligible ad with the highest value, which
`CodeTrie(ad_value=...)` decides; codes stay as they are. `suffix`: one more level that counts the
items of a path, so that every path is one item's."""


class CodeIndex:
    """Which items have a path, and which path an item has; several items may share one."""

    def __init__(self, codes: Int[Tensor, "n L"], item_id: Iterable[int] | None = None) -> None:
        """Index the paths int64 [n, L] of items; arguments and errors as in `add`."""
        self._num_levels = codes.shape[1]
        self._path: dict[int, tuple[int, ...]] = {}
        self._items: dict[tuple[int, ...], list[int]] = {}
        self.add(codes, item_id)

    def __len__(self) -> int:
        """Number of items."""
        return len(self._path)

    def add(self, codes: Int[Tensor, "n L"], item_id: Iterable[int] | None = None) -> list[int]:
        """Add items with paths int64 [n, L] and return their ids.

        `item_id` are n integers, each once and not in use; None: the next ones after the highest.

        Raises:
            ValueError: Another number of levels or of ids, or an id that is in use. Nothing is
                added then.
        """
        if codes.ndim != 2 or codes.shape[1] != self._num_levels:
            raise ValueError(f"codes must be [n, {self._num_levels}], got {list(codes.shape)}")
        start = max(self._path, default=-1) + 1
        ids = list(range(start, start + len(codes))) if item_id is None else list(map(int, item_id))
        if len(ids) != len(codes):
            raise ValueError(f"item_id must have {len(codes)} entries, got {len(ids)}")
        taken = self._path.keys() & ids
        if taken or len(set(ids)) != len(ids):
            again = min(taken) if taken else min(i for i in ids if ids.count(i) > 1)
            raise ValueError(f"item {again} would be in the index twice")
        for item, path in zip(ids, map(tuple, codes.tolist()), strict=True):
            self._path[item] = path
            self._items.setdefault(path, []).append(item)
        return ids

    def items(self, path: Sequence[int]) -> list[int]:
        """Return the items of 1 to L codes, a path or prefix, in order of the ids."""
        wanted = tuple(int(code) for code in path)
        if len(wanted) == self._num_levels:
            return sorted(self._items.get(wanted, []))
        size = len(wanted)
        return sorted(i for p, items in self._items.items() if p[:size] == wanted for i in items)

    def codes(self, item_id: Iterable[int]) -> Int[Tensor, "n L"]:
        """Return the paths int64 [n, L] of items.

        Raises:
            ValueError: An id that is not in the index.
        """
        ids = list(map(int, item_id))
        unknown = [item for item in ids if item not in self._path]
        if unknown:
            raise ValueError(
                f"{len(unknown)} items are not in the index, the first is {unknown[0]}"
            )
        rows = [self._path[item] for item in ids]
        return torch.tensor(rows, dtype=torch.int64).view(len(ids), self._num_levels)

    def tensors(self) -> dict[str, Tensor]:
        """Return what `from_tensors` takes."""
        ids = sorted(self._path)
        return {"item_id": torch.tensor(ids, dtype=torch.int64), "codes": self.codes(ids)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "CodeIndex":
        """Return the index that `tensors` wrote."""
        return cls(tensors["codes"], tensors["item_id"].tolist())


def resolve_collisions(codes: Int[Tensor, "n L"], resolve: str) -> Int[Tensor, "n L2"]:
    """Return the paths that training, decoding and the environment use, by one of `RESOLVE`.

    Of `codes` int64 [n, L] that is `codes`, or [n, L + 1] with the suffix 0, 1, ... in the order of
    the rows.

    Raises:
        ValueError: Unknown name.
    """
    if resolve not in RESOLVE:
        raise ValueError(f"resolve must be one of {', '.join(RESOLVE)}, got {resolve!r}")
    if resolve == "highest_value":
        return codes
    _, path, count = codes.unique(dim=0, return_inverse=True, return_counts=True)
    order = path.argsort(stable=True)
    first = count.cumsum(0) - count
    suffix = torch.empty_like(path)
    suffix[order] = torch.arange(len(path), device=path.device) - first[path[order]]
    return torch.cat([codes, suffix[:, None]], dim=1)
