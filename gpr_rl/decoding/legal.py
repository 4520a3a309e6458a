"""A tree cut down to what each request may show. Look-ups only (GPR 2.3).

A node is legal for a request when the run of ads below it holds an eligible one.

Dims: B requests, N ads, L levels, V codes per level, P paths, n_l nodes of level l.
"""

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from gpr_rl.checks import check_codes
from gpr_rl.decoding.tree import DEAD, ROOT, Tree


class Next(NamedTuple):
    """The legal and illegal children of B W prefixes, in one row of T, prefix by prefix."""

    row: Tensor  # int64 [T], whose child it is, in [0, B W)
    node: Tensor  # int64 [T]
    code: Tensor  # int64 [T]
    legal: Tensor  # bool [T]


class LegalTrie:
    """The tree for B requests; one for `batch_size` 1 serves requests of any number.

    This class is the whole tree, of which every ad may be shown.
    """

    def __init__(self, tree: Tree, batch_size: int = 1) -> None:
        """Hold a version of the catalogue; use `CodeTrie.restrict`."""
        self.trie = tree
        self.batch_size = batch_size

    @property
    def eligible(self) -> Bool[Tensor, "B N"]:
        """Which ads may be shown."""
        return torch.ones(1, self.trie.num_ads, dtype=torch.bool, device=self.trie.device)

    def is_legal(self, level: int, node: Int[Tensor, "B ..."]) -> Bool[Tensor, "B ..."]:
        """Return whether nodes of `level` (0 is the root's) are legal; the dead one never is."""
        return node != DEAD

    def leaf_ad(self, leaf: Int[Tensor, "B ..."]) -> Int[Tensor, "B ..."]:
        """Return the ad of nodes of the last level, -1 for an illegal one."""
        place = self.trie.edge.index_select(0, leaf.reshape(-1)).view(leaf.shape).long()
        ad_id = self.trie.ad_id[place.clamp_max(len(self.trie.ad_id) - 1)].long()
        return ad_id.where(leaf != DEAD, -1)

    def child_mask(self, level: int, node: Int[Tensor, "B ..."]) -> Bool[Tensor, "B *rest V"]:
        """Return which codes may follow, given nodes of `level` (0 is the root's)."""
        table = self.trie.tables[level]
        if table is None:
            return self._scattered(level, node)
        rows = table.index_select(0, node.reshape(-1)).view(*node.shape, self.trie.num_codes)
        return self.is_legal(level + 1, rows)

    def _scattered(self, level: int, node: Tensor) -> Tensor:
        found = self.children(level, node)
        mask = torch.zeros(node.numel(), self.trie.num_codes, dtype=torch.bool, device=node.device)
        mask[found.row, found.code] = found.legal
        return mask.view(*node.shape, self.trie.num_codes)

    def children(self, level: int, node: Int[Tensor, "B ..."]) -> Next:
        """Return all children of nodes of `level`, and whether they are legal."""
        row, child, code = self.trie.children(level, node.reshape(-1))
        return Next(row, child, code, self._legal_rows(level + 1, child, row, node))

    def _legal_rows(self, level: int, child: Tensor, row: Tensor, node: Tensor) -> Tensor:
        """Return `is_legal` of children in one row, whose parents are `node` [B, ...]."""
        return child != DEAD

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

    @property
    def path_ad(self) -> Int[Tensor, "B P"]:
        """The ad of each of the tree's `paths` per request, -1 where illegal."""
        leaf = torch.arange(1, self.trie.num_paths + 1, device=self.trie.device)
        return self.leaf_ad(leaf.expand(self.batch_size, -1))

    def root(self, *shape: int) -> Int[Tensor, "..."]:
        """Return the root as nodes of the given shape."""
        return torch.full(shape, ROOT, dtype=torch.int32, device=self.trie.device)

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
        nodes = [self.root(*codes.shape[:-1])]
        for level, code in enumerate(codes.unbind(-1)):
            nodes.append(self.trie.child(level, nodes[-1], code))
        return nodes


class EligibleTrie(LegalTrie):
    """The tree of the ads marked for each request, bool [B, N]; tables follow on demand."""

    def __init__(self, tree: Tree, eligible: Bool[Tensor, "B N"]) -> None:
        super().__init__(tree, batch_size=len(eligible))
        self._eligible = eligible

    @property
    def eligible(self) -> Bool[Tensor, "B N"]:
        """Which ads may be shown."""
        return self._eligible

    @cached_property
    def _count(self) -> Tensor:
        """How many of the first i ads, in the order of the tree, are eligible, int32 [B, N + 1]."""
        order, eligible = self.trie.ad_id, self._eligible
        if order.device.type == "cpu":  # several times as fast as torch's
            ordered = torch.from_numpy(np.take(eligible.numpy(), order.numpy(), axis=1))
        else:
            ordered = eligible.index_select(1, order)
        count = ordered.new_zeros(self.batch_size, len(order) + 1, dtype=torch.int32)
        torch.cumsum(ordered, 1, dtype=torch.int32, out=count[:, 1:])
        return count

    @cached_property
    def _at_edges(self) -> list[Tensor]:
        """The counts at the first ad of every node, and at the end, per level."""
        return [
            self._count.gather(1, edges.expand(self.batch_size, -1)) for edges in self.trie.edges
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
        found = self.trie.runs.root_mask(self._eligible.cpu().numpy())
        return torch.from_numpy(found).to(self._eligible.device)

    def part(self, start: int, stop: int) -> "EligibleTrie":
        """Return the trees of rows start..stop-1; they share memory with this one's."""
        chosen = EligibleTrie(self.trie, self._eligible[start:stop])
        chosen.root_mask = self.root_mask[start:stop]
        return chosen

    def select(self, row: Int[Tensor, " R"]) -> "EligibleTrie":
        """Return the trees of the given rows, in their order; rows may repeat."""
        chosen = EligibleTrie(self.trie, self._eligible.index_select(0, row))
        chosen._count = self._count.index_select(0, row)
        chosen._at_edges = [x.index_select(0, row) for x in self._at_edges]
        chosen._legal = [x.index_select(0, row) for x in self._legal]
        return chosen

    def is_legal(self, level: int, node: Int[Tensor, "B ..."]) -> Bool[Tensor, "B ..."]:
        """Return whether nodes of `level` are legal."""
        return _look_up(self._legal[level], node)

    def _legal_rows(self, level: int, child: Tensor, row: Tensor, node: Tensor) -> Tensor:
        table = self._legal[level]
        if len(table) == 1:
            return table[0].index_select(0, child)
        return table[row // (node.numel() // len(node)), child]

    def leaf_ad(self, leaf: Int[Tensor, "B ..."]) -> Int[Tensor, "B ..."]:
        """Return the first eligible ad of nodes of the last level, -1 for an illegal one."""
        rank = _look_up(self._at_edges[-1], (leaf - 1).clamp_min(0)) + 1
        place = torch.searchsorted(self._count, rank.reshape(self.batch_size, -1)) - 1
        ad_id = self.trie.ad_id[place.clamp_max(len(self.trie.ad_id) - 1).view(leaf.shape)]
        return ad_id.long().where(_look_up(self._legal[-1], leaf), -1)


def _look_up(table: Tensor, node: Tensor) -> Tensor:
    """Return table[b, node[b, ...]] for a table [B or 1, n]."""
    if len(table) > 1:
        row = torch.arange(len(table), dtype=node.dtype, device=node.device) * table.shape[1]
        node = node + row.view(-1, *[1] * (node.ndim - 1))
    return table.reshape(-1).index_select(0, node.reshape(-1)).view(node.shape)


def check_eligible(eligible: Tensor, num_ads: int) -> None:
    """Raise a ValueError where `eligible` is not bool [B, N]."""
    if eligible.dtype != torch.bool or eligible.ndim != 2 or eligible.shape[1] != num_ads:
        raise ValueError(
            f"eligible must be bool [B, {num_ads}], got {eligible.dtype} {list(eligible.shape)}"
        )
