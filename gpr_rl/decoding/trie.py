"""Which codes may follow a prefix: the prefix tree of all ads, cut down to one user's (GPR 2.3).

The ads are sorted by path, so the ads below any node are one run of that order. A node is legal
for a request when its run holds an eligible ad, which two look-ups in a running count decide.

Dims: B requests, N ads, L levels, V codes per level, P distinct paths.
"""

import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from gpr_rl.checks import check_codes

_DEAD = 0  # node index of a prefix that no ad has; the real nodes of a level count from 1
_ROOT = 1
_NUM_FIRST = 8


@dataclass(frozen=True)
class TreeRuns:
    """A prefix tree over N ads in tree order; node i covers the ads [edge[i - 1], edge[i])."""

    children: list[NDArray[np.int32]]
    """Per level [n_l + 1, V], node of the next level or 0; the root is node 1."""
    edge: list[NDArray[np.int64]]
    """Per level [n_l + 1]."""
    code: list[NDArray[np.int64]]
    """Per level [N], the ads' codes."""
    ad_id: NDArray[np.int64]
    """[N]."""
    first_ads: NDArray[np.int64]
    """[8, n_1], some ads of every first code; the last one again where there are fewer."""


class CodeTrie:
    """The prefix tree of N ads' codes, built once per catalogue.

    Several ads may share a path; it then stands for the eligible ad with the highest `ad_value`
    (`docs/decisions.md`), ties and no `ad_value` giving the lowest ad id. Memory is 4 V bytes per
    distinct prefix: 20 MB for 20,000 ads with V = 256; a search in which every ad may be shown adds
    a quarter.

    Attributes:
        codes: int64 [N, L], as given; V = `num_codes` is the largest where levels differ.
        paths: int64 [P, L], the distinct paths in lexicographic order.
    """

    def __init__(
        self,
        codes: Int[Tensor, "N L"] | Int[np.ndarray, "N L"],
        num_codes: int,
        ad_value: Tensor | np.ndarray | None = None,
    ) -> None:
        """Build the tree of paths with codes in [0, num_codes).

        `ad_value` is a number per ad [N], e.g. expected eCPM: the highest wins a shared path.

        Raises:
            ValueError: No ads, a code out of range, or an `ad_value` that is NaN or misshapen.
        """
        codes = torch.as_tensor(codes)
        ad_value = None if ad_value is None else torch.as_tensor(ad_value)
        if codes.ndim != 2 or 0 in codes.shape:
            raise ValueError(f"codes must be [N, L] with N, L >= 1, got {list(codes.shape)}")
        self.codes = codes.long()
        self.num_codes = int(num_codes)
        self.num_ads, self.num_levels = codes.shape
        check_codes(self.codes, self.num_codes)
        if ad_value is not None and ad_value.shape != codes.shape[:1]:
            raise ValueError(
                f"ad_value must be [{self.num_ads}], one per ad, got {list(ad_value.shape)}"
            )
        if ad_value is not None and ad_value.isnan().any():
            raise ValueError(f"ad_value of ad {int(ad_value.isnan().nonzero()[0])} is NaN")
        self._edges: list[Tensor] = []  # [n_l + 1]; node i covers sorted ads [edge[i-1], edge[i])
        self._children: list[Tensor] = []  # int32 [n_l + 1, V], node of level l + 1 or _DEAD
        self._build(ad_value)

    def _build(self, ad_value: Tensor | None) -> None:
        order = torch.arange(self.num_ads, device=self.codes.device)
        if ad_value is not None:
            order = ad_value.argsort(descending=True, stable=True)
        for level in reversed(range(self.num_levels)):  # stable sorts, least important first
            order = order[self.codes[order, level].argsort(stable=True)]
        self._order = order  # the ad ids by (path, -ad_value, ad id)
        ordered = self.codes[self._order]
        opens = torch.zeros_like(self._order, dtype=torch.bool)  # a new node begins at this ad
        opens[0] = True
        end = self._order.new_tensor([self.num_ads])
        parent = opens.cumsum(0)  # 1-based node of every ad at the level so far
        self._edges.append(torch.cat([opens.nonzero()[:, 0], end]))
        for level in range(self.num_levels):
            opens = opens.clone()
            opens[1:] |= ordered[1:, level] != ordered[:-1, level]
            first = opens.nonzero()[:, 0]
            node = opens.cumsum(0)
            table = torch.zeros(
                int(parent[-1]) + 1, self.num_codes, dtype=torch.int32, device=node.device
            )
            table[parent[first], ordered[first, level]] = node[first].int()
            self._children.append(table)
            self._edges.append(torch.cat([first, end]))
            parent = node
        self.paths = ordered[first]

    def to(self, device: torch.device | str) -> "CodeTrie":
        """Return the same tree on a device; itself where it is there already."""
        if torch.device(device) == self.codes.device:
            return self
        moved = copy.copy(self)
        for name in ("_unrestricted", "runs", "_is_child"):
            moved.__dict__.pop(name, None)  # made again where they are needed
        for name in ("codes", "paths", "_order"):
            setattr(moved, name, getattr(self, name).to(device))
        moved._edges = [x.to(device) for x in self._edges]
        moved._children = [x.to(device) for x in self._children]
        return moved

    @property
    def num_paths(self) -> int:
        """P, the number of distinct paths."""
        return len(self.paths)

    def restrict(self, eligible: Bool[Tensor, "B N"] | None = None) -> "LegalTrie":
        """Return the tree of the ads each request may show, bool [B, N]; None: of all ads.

        Raises:
            ValueError: `eligible` is not bool [B, N].
        """
        if eligible is None:
            return self._unrestricted
        if eligible.dtype != torch.bool or eligible.ndim != 2 or eligible.shape[1] != self.num_ads:
            raise ValueError(
                f"eligible must be bool [B, {self.num_ads}],"
                f" got {eligible.dtype} {list(eligible.shape)}"
            )
        return LegalTrie(self, eligible)

    @cached_property
    def _unrestricted(self) -> "LegalTrie":
        every = torch.ones(1, self.num_ads, dtype=torch.bool, device=self.codes.device)
        return LegalTrie(self, every)

    def legal_mask(
        self, prefix: Int[Tensor, "B *rest l"], eligible: Bool[Tensor, "B N"] | None = None
    ) -> Bool[Tensor, "B *rest V"]:
        """Return which codes may follow each prefix; see `restrict` and `LegalTrie.mask`."""
        return self.restrict(eligible).mask(prefix)

    @cached_property
    def runs(self) -> "TreeRuns":
        """The tree as numpy arrays, for stepping down it code by code."""
        if self.codes.device.type != "cpu":
            return self.to("cpu").runs
        edge = self._edges[1].numpy()
        few = np.minimum(edge[:-1] + np.arange(_NUM_FIRST)[:, None], edge[1:] - 1)
        return TreeRuns(
            children=[table.numpy() for table in self._children],
            edge=[edges.numpy() for edges in self._edges],
            code=[
                np.ascontiguousarray(self.codes[self._order, level].numpy())
                for level in range(self.num_levels)
            ],
            ad_id=self._order.numpy(),
            first_ads=self._order.numpy()[few],
        )

    def root(self, *shape: int) -> Int[Tensor, "..."]:
        """Return the root as nodes of the given shape."""
        return torch.full(shape, _ROOT, dtype=torch.int32, device=self.codes.device)

    def child(
        self, level: int, node: Int[Tensor, "*s"], code: Int[Tensor, "*s"]
    ) -> Int[Tensor, "*s"]:
        """Return the nodes reached from nodes of `level` (0 is the root's) by `code`."""
        table = self._children[level]
        flat = node.reshape(-1).long() * self.num_codes + code.reshape(-1)
        return table.reshape(-1).index_select(0, flat).view(node.shape)

    def _rows(self, table: Tensor, node: Int[Tensor, "*s"]) -> Tensor:
        return table.index_select(0, node.reshape(-1)).view(*node.shape, self.num_codes)

    @cached_property
    def _is_child(self) -> list[Tensor]:
        """Whether there is such a child, bool [n_l + 1, V] per level."""
        return [table != _DEAD for table in self._children]


class LegalTrie:
    """A `CodeTrie` cut down to the ads that each of B requests may show. Look-ups only.

    A batch of one (`restrict(None)`) serves requests of any number.
    """

    def __init__(self, trie: CodeTrie, eligible: Bool[Tensor, "B N"]) -> None:
        """Hold the eligible ads; tables follow on demand. Use `CodeTrie.restrict`, which checks."""
        self.trie = trie
        self.batch_size = len(eligible)
        self.eligible = eligible

    @cached_property
    def _count(self) -> Tensor:
        """How many of the first i ads, in the order of the tree, are eligible, int32 [B, N + 1]."""
        order, eligible = self.trie._order, self.eligible
        if order.device.type == "cpu":  # several times as fast as torch's
            ordered = torch.from_numpy(np.take(eligible.numpy(), order.numpy(), axis=1))
        else:
            ordered = eligible.index_select(1, order)
        count = ordered.new_zeros(self.batch_size, self.trie.num_ads + 1, dtype=torch.int32)
        torch.cumsum(ordered, 1, dtype=torch.int32, out=count[:, 1:])
        return count

    @cached_property
    def _at_edges(self) -> list[Tensor]:
        """The counts at the first ad of every node, and at the end, per level."""
        return [
            self._count.gather(1, edges.expand(self.batch_size, -1)) for edges in self.trie._edges
        ]

    @cached_property
    def _legal(self) -> list[Tensor]:
        """Whether each node is legal, [B, n_l + 1] per level; the dead node is never legal."""
        tables = []
        for at_edge in self._at_edges:
            legal = torch.zeros_like(at_edge, dtype=torch.bool)
            torch.gt(at_edge[:, 1:], at_edge[:, :-1], out=legal[:, 1:])
            tables.append(legal)
        return tables

    @cached_property
    def root_mask(self) -> Bool[Tensor, "B V"]:
        """The legal first codes, as `mask` of an empty prefix, without the tables."""
        runs = self.trie.runs
        eligible = self.eligible.cpu().numpy()
        # most codes have an eligible ad among their first few; the rows where one has not are
        # looked at in full
        found = np.bitwise_or.reduce(np.take(eligible, runs.first_ads, axis=1), axis=1)
        unsure = np.flatnonzero(~found.all(1))
        if len(unsure):
            ordered = np.take(eligible[unsure], runs.ad_id, axis=1)
            found[unsure] = np.logical_or.reduceat(ordered, runs.edge[1][:-1], axis=1)
        mask = np.zeros((self.batch_size, self.trie.num_codes), dtype=np.bool_)
        mask[:, runs.code[0][runs.edge[1][:-1]]] = found
        return torch.from_numpy(mask).to(self.eligible.device)

    def part(self, start: int, stop: int) -> "LegalTrie":
        """Return the trees of rows start..stop-1; they share memory with this one's."""
        chosen = LegalTrie(self.trie, self.eligible[start:stop])
        chosen.root_mask = self.root_mask[start:stop]
        return chosen

    def select(self, row: Int[Tensor, " R"]) -> "LegalTrie":
        """Return the trees of the given rows, in their order; rows may repeat."""
        chosen = LegalTrie(self.trie, self.eligible.index_select(0, row))
        chosen._count = self._count.index_select(0, row)
        chosen._at_edges = [x.index_select(0, row) for x in self._at_edges]
        chosen._legal = [x.index_select(0, row) for x in self._legal]
        return chosen

    def _walk(self, codes: Tensor, least: int, most: int, name: str) -> list[Tensor]:
        """Return the nodes of checked prefixes: the root's, after one code, after two, ..."""
        if codes.ndim < 2 or not least <= codes.shape[-1] <= most:
            lengths = f"{least}..{most}" if least < most else str(most)
            raise ValueError(
                f"{name} must be [B, ..., l] with l in {lengths}, got {list(codes.shape)}"
            )
        if self.batch_size not in (1, len(codes)):
            raise ValueError(f"{name} has {len(codes)} requests, eligible has {self.batch_size}")
        check_codes(codes, self.trie.num_codes)
        nodes = [self.trie.root(*codes.shape[:-1])]
        for level, code in enumerate(codes.unbind(-1)):
            nodes.append(self.trie.child(level, nodes[-1], code))
        return nodes

    def _look_up(self, table: Tensor, node: Tensor) -> Tensor:
        """Return table[b, node[b, ...]] for a table [B or 1, n]."""
        if len(table) > 1:
            row = torch.arange(len(table), dtype=node.dtype, device=node.device) * table.shape[1]
            node = node + row.view(-1, *[1] * (node.ndim - 1))
        return table.reshape(-1).index_select(0, node.reshape(-1)).view(node.shape)

    def child_mask(self, level: int, node: Int[Tensor, "B ..."]) -> Bool[Tensor, "B ... V"]:
        """Return which codes may follow, given nodes of `level` (0 is the root's)."""
        if self is self.trie._unrestricted:  # every ad may be shown
            return self.trie._rows(self.trie._is_child[level], node)
        return self._look_up(
            self._legal[level + 1], self.trie._rows(self.trie._children[level], node)
        )

    def mask(self, prefix: Int[Tensor, "B *rest l"]) -> Bool[Tensor, "B *rest V"]:
        """Return which codes may follow each prefix of l codes, l in 0..L-1, each in [0, V).

        True where at least one eligible ad begins with prefix and code.

        Raises:
            ValueError: A prefix too long, a code outside [0, V), another number of requests.
        """
        node = self._walk(prefix, 0, self.trie.num_levels - 1, "prefix")[-1]
        return self.child_mask(prefix.shape[-1], node)

    def path_masks(self, codes: Int[Tensor, "B *rest L"]) -> Bool[Tensor, "B *rest L V"]:
        """Return `mask` at every level along known paths: [..., l, :] follows codes[..., :l]."""
        nodes = self._walk(codes, self.trie.num_levels, self.trie.num_levels, "codes")
        masks = [self.child_mask(level, node) for level, node in enumerate(nodes[:-1])]
        return torch.stack(masks, dim=-2)

    def resolve(self, codes: Int[Tensor, "B *rest L"]) -> Int[Tensor, "B ..."]:
        """Return the ad of each path, -1 where no eligible ad has it; raises as `mask` does."""
        nodes = self._walk(codes, self.trie.num_levels, self.trie.num_levels, "codes")
        return self.leaf_ad(nodes[-1])

    def leaf_ad(self, leaf: Int[Tensor, "B ..."]) -> Int[Tensor, "B ..."]:
        """Return the ad of nodes of the last level, -1 for an illegal one."""
        if self is self.trie._unrestricted:
            first = self.trie._edges[-1].index_select(0, (leaf - 1).clamp_min(0).reshape(-1))
            ad_id = self.trie._order[first.view(leaf.shape)]
            return ad_id.where(leaf != _DEAD, -1)
        rank = self._look_up(self._at_edges[-1], (leaf - 1).clamp_min(0)) + 1
        position = torch.searchsorted(self._count, rank.reshape(self.batch_size, -1)) - 1
        ad_id = self.trie._order[position.clamp_max(self.trie.num_ads - 1).view(leaf.shape)]
        return ad_id.where(self._look_up(self._legal[-1], leaf), -1)

    @property
    def path_ad(self) -> Int[Tensor, "B P"]:
        """The ad of each of the tree's `paths` per request, -1 where illegal."""
        leaf = torch.arange(1, self.trie.num_paths + 1, device=self.eligible.device)
        return self.leaf_ad(leaf.expand(self.batch_size, -1))
