"""The prefix tree of a catalogue as compressed rows: one version of it, which never changes.

Nodes of a level are numbered in the order of their paths, from 1; 0 is what no ad has. A node's
children are then one run of the next level's nodes, so two numbers per node are the whole tree:
where its run begins, and its own last code (as in STATIC, arXiv 2602.22647). Where a level is
small a table [node, code] answers sooner; it is made on demand.

Dims: N ads, P distinct paths, L levels, V codes per level, n_l nodes of level l, R nodes asked for.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

DEAD, ROOT = 0, 1
_NUM_FIRST = 8
UNEVEN = 8.0
"""From so many times the mean number of children on, gaps cost more than rows without."""
DENSE_BYTES = 32 << 20
"""A level has a table of its nodes' children while that takes no more memory than this."""


class Children(NamedTuple):
    """The children of R nodes in one row of T, node by node, codes rising."""

    row: Tensor  # int64 [T], whose child it is, in [0, R)
    node: Tensor  # int64 [T]
    code: Tensor  # int64 [T]


class Place(NamedTuple):
    """Where children stand: `node` is the first that is not below the code."""

    node: Tensor
    exists: Tensor


@dataclass(frozen=True, eq=False)
class Tree:
    """One version of a catalogue. Arrays are in path order and shared with other versions."""

    num_codes: int
    num_ads: int
    """Ad ids lie in [0, num_ads); not all of them need to be in the tree."""
    ad_id: Tensor
    """int32 [N], by (path, -value, id)."""
    edge: Tensor
    """int32 [P + 2]; leaf i has the ads [edge[i], edge[i + 1]), the dead one none."""
    first: tuple[Tensor, ...]
    """Per level l = 0..L-1, int32 [n_l + 2]; node i has the children first[i] + 1..first[i + 1]."""
    code: tuple[Tensor, ...]
    """Per level l = 0..L, of the smallest kind [n_l + 1]: a node's last code."""
    value: Tensor | None = None
    """[N], who wins a shared path; None: the lowest id."""
    active: Tensor | None = None
    """bool [N], ads that may be shown to anybody; None: all."""
    version: int = 0
    dense_bytes: int = DENSE_BYTES

    @classmethod
    def build(cls, codes: Tensor, num_codes: int, ad_value: Tensor | None, **more: int) -> "Tree":
        """Return the tree of ads 0..N-1 with checked codes [N, L]."""
        codes = codes.to(smallest(num_codes))
        order = torch.arange(len(codes), device=codes.device)
        if ad_value is not None:
            order = ad_value.argsort(descending=True, stable=True)
        for level in reversed(range(codes.shape[1])):  # stable sorts, least important first
            order = order[codes[order, level].argsort(stable=True)]
        value = None if ad_value is None else ad_value[order]
        return cls.of_sorted(codes[order], order, num_codes, len(codes), value=value, **more)

    @classmethod
    def of_sorted(
        cls, codes: Tensor, ad_id: Tensor, num_codes: int, num_ads: int, **more: object
    ) -> "Tree":
        """Return the tree of ads that are in path order, codes [N, L]."""
        opens = torch.zeros(len(codes), dtype=torch.bool, device=codes.device)
        opens[0] = True
        starts = [opens.nonzero()[:, 0]]  # per level, the first ad of every node
        first, code = [], [codes.new_zeros(2)]
        for level in range(codes.shape[1]):
            opens[1:] |= codes[1:, level] != codes[:-1, level]
            node = opens.cumsum(0, dtype=torch.int32)
            first.append(_run_edges(node[starts[-1]] - 1, int(node[-1])))
            starts.append(opens.nonzero()[:, 0])
            code.append(torch.cat([codes.new_zeros(1), codes[starts[-1], level]]))
        return cls(
            num_codes,
            num_ads,
            ad_id.int(),
            _run_edges(starts[-1], len(codes)),
            tuple(first),
            tuple(code),
            **more,  # type: ignore[arg-type]
        )

    @property
    def num_levels(self) -> int:
        """L."""
        return len(self.first)

    @property
    def num_paths(self) -> int:
        """P."""
        return len(self.edge) - 2

    @property
    def device(self) -> torch.device:
        """Where the tree is."""
        return self.edge.device

    @property
    def num_bytes(self) -> int:
        """What the arrays take, without tables made on demand."""
        arrays = [self.ad_id, self.edge, *self.first, *self.code, self.value, self.active]
        return sum(x.numel() * x.element_size() for x in arrays if x is not None)

    def to(self, device: torch.device | str) -> "Tree":
        """Return the same tree on a device; itself where it is there already."""
        if torch.device(device) == self.device:
            return self
        moved = {
            name: None if x is None else x.to(device)
            for name in ("ad_id", "edge", "value", "active")
            for x in [getattr(self, name)]
        }
        parts = {
            name: tuple(x.to(device) for x in getattr(self, name)) for name in ("first", "code")
        }
        return replace(self, **moved, **parts)  # type: ignore[arg-type]

    @cached_property
    def edges(self) -> list[Tensor]:
        """Per level l = 0..L, int64 [n_l + 1]; node i covers the ads [edges[i - 1], edges[i])."""
        found = [self.edge[1:].long()]
        for first in reversed(self.first):
            found.append(found[-1][first[1:].long()])
        return found[::-1]

    def _of_children(self, level: int, of_parent: Tensor) -> Tensor:
        """Return what a level's nodes [n_l] have for each of their children [n_{l+1}]."""
        return of_parent.repeat_interleave(self.first[level].diff()[1:].long(), dim=0)

    @cached_property
    def paths(self) -> Int[Tensor, "P L"]:
        """The distinct paths in lexicographic order."""
        columns: list[Tensor] = []
        for level in range(self.num_levels):
            columns = [self._of_children(level, column) for column in columns]
            columns.append(self.code[level + 1][1:])
        return torch.stack(columns, dim=-1).long()

    @cached_property
    def codes(self) -> Int[Tensor, "N L"]:
        """The path of every ad id; -1 for one that is not in the tree."""
        of_ad = self.paths.repeat_interleave(self.edge.diff()[1:].long(), dim=0)
        return of_ad.new_full((self.num_ads, self.num_levels), -1).index_copy_(
            0, self.ad_id.long(), of_ad
        )

    def is_dense(self, level: int) -> bool:
        """Whether nodes of `level` have a table of their children."""
        return 4 * self.num_codes * (len(self.first[level]) - 1) <= self.dense_bytes

    @cached_property
    def tables(self) -> list[Tensor | None]:
        """Per level int32 [n_l + 1, V], the child or the dead node; None where it is not dense."""
        return [
            self._table(level) if self.is_dense(level) else None for level in range(self.num_levels)
        ]

    def _table(self, level: int) -> Tensor:
        num_nodes, code = len(self.first[level]) - 1, self.code[level + 1]
        table = torch.zeros(num_nodes, self.num_codes, dtype=torch.int32, device=self.device)
        parent = self._of_children(level, torch.arange(1, num_nodes, device=self.device))
        node = torch.arange(1, len(code), dtype=torch.int32, device=self.device)
        table[parent, code[1:].long()] = node
        return table

    @cached_property
    def most_children(self) -> list[int]:
        """Per level, the largest number of children that a node has."""
        return [int(first.diff().max()) for first in self.first]

    def is_uneven(self, level: int) -> bool:
        """Whether a few nodes of `level` have far more children than the mean."""
        mean = (len(self.code[level + 1]) - 1) / (len(self.first[level]) - 2)
        return self.most_children[level] > UNEVEN * max(mean, 2.0)

    @cached_property
    def slots(self) -> list[Tensor]:
        """Per level, 1 to its largest number of children, int32."""
        return [
            torch.arange(1, most + 1, dtype=torch.int32, device=self.device)
            for most in self.most_children
        ]

    def child(self, level: int, node: Int[Tensor, "*s"], code: Int[Tensor, "*s"]) -> Tensor:
        """Return the nodes reached from nodes of `level` (0 is the root's) by `code`."""
        table = self.tables[level]
        if table is not None:
            flat = node.reshape(-1).long() * self.num_codes + code.reshape(-1)
            return table.reshape(-1).index_select(0, flat).view(node.shape)
        found = self.place(level, node.reshape(-1), code.reshape(-1))
        return found.node.where(found.exists, DEAD).view(node.shape).int()

    def place(self, level: int, node: Int[Tensor, " R"], code: Int[Tensor, " R"]) -> Place:
        """Return where `code` stands, or would stand, among the children of nodes."""
        run, codes = self.first[level], self.code[level + 1]
        node = node.long()
        low, high = run[node].long() + 1, run[node + 1].long() + 1
        end = high
        for _ in range(int((high - low).max()).bit_length() if len(node) else 0):
            middle = (low + high) >> 1
            below = codes[middle.clamp_max(len(codes) - 1)] < code
            open_ = low < high
            low = torch.where(open_ & below, middle + 1, low)
            high = torch.where(open_ & ~below, middle, high)
        there = low.clamp_max(len(codes) - 1)
        return Place(low, (low < end) & (codes[there] == code))

    def children(self, level: int, node: Int[Tensor, " R"]) -> Children:
        """Return all children of nodes of `level`."""
        run, node = self.first[level], node.long()
        start = run[node].long()
        count = run[node + 1].long() - start
        row = torch.repeat_interleave(count)
        begins = start + 1 - (count.cumsum(0) - count)
        child = begins[row] + torch.arange(len(row), device=row.device)
        return Children(row, child, self.code[level + 1][child].long())

    @cached_property
    def active_ads(self) -> Bool[Tensor, " A"] | None:
        """Which ad ids may be shown to anybody, [num_ads]; None: every one."""
        if self.active is None and len(self.ad_id) == self.num_ads:
            return None
        active = torch.zeros(self.num_ads, dtype=torch.bool, device=self.device)
        active[self.ad_id.long()] = True if self.active is None else self.active
        return active

    @cached_property
    def runs(self) -> "TreeRuns":
        """The tree as numpy arrays."""
        return TreeRuns.of(self.to("cpu"))


@dataclass(frozen=True)
class TreeRuns:
    """A prefix tree over N ads in tree order; node i covers the ads [edge[i - 1], edge[i])."""

    tree: "Tree"
    edge: list[NDArray[np.int64]]
    """Per level [n_l + 1]."""
    code: list[NDArray[np.int64]]
    """Per level [N], the ads' codes."""
    ad_id: NDArray[np.int64]
    """[N]."""
    first_ads: NDArray[np.int64]
    """[8, n_1], some ads of every first code; the last one again where there are fewer."""

    @classmethod
    def of(cls, tree: "Tree") -> "TreeRuns":
        """Return the arrays of a tree on the CPU."""
        edge = [edges.numpy() for edges in tree.edges]
        few = np.minimum(edge[1][:-1] + np.arange(_NUM_FIRST)[:, None], edge[1][1:] - 1)
        ad_id = tree.ad_id.numpy().astype(np.int64)
        paths = np.repeat(tree.paths.numpy(), np.diff(edge[-1]), axis=0)
        code = [np.ascontiguousarray(column) for column in paths.T]
        return cls(tree, edge, code, ad_id, ad_id[few])

    def child(
        self, level: int, node: NDArray[np.int64], code: NDArray[np.int64]
    ) -> NDArray[np.int32]:
        """Return the nodes reached from nodes [R] of `level` by codes [R]; 0 where none is."""
        table = self.tree.tables[level]
        if table is not None:
            return table.numpy()[node, code]
        return self.tree.child(level, torch.from_numpy(node), torch.from_numpy(code)).numpy()

    def root_mask(self, eligible: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which first codes have an eligible ad, [B, V]."""
        # most codes have an eligible ad among their first few; the rows where one has not are
        # looked at in full
        found = np.bitwise_or.reduce(np.take(eligible, self.first_ads, axis=1), axis=1)
        unsure = np.flatnonzero(~found.all(1))
        if len(unsure):
            ordered = np.take(eligible[unsure], self.ad_id, axis=1)
            found[unsure] = np.logical_or.reduceat(ordered, self.edge[1][:-1], axis=1)
        mask = np.zeros((len(eligible), self.tree.num_codes), dtype=np.bool_)
        mask[:, self.code[0][self.edge[1][:-1]]] = found
        return mask


def smallest(num_codes: int) -> torch.dtype:
    """Return the smallest integer type for codes in [0, num_codes)."""
    if num_codes <= 1 << 8:
        return torch.uint8
    return torch.int16 if num_codes <= 1 << 15 else torch.int32


def _run_edges(start: Tensor, stop: int) -> Tensor:
    """Return the starts of runs with an empty one in front, and the end, int32."""
    return torch.cat([start.new_zeros(1), start, start.new_tensor([stop])]).int()
