"""New versions of a tree: ads that come, go, or pause.

An added ad is put into its place in the rows and a retired one taken out: nothing is sorted again,
and the rows are what building them anew would give. Trees are on the CPU here.

Dims: N ads, M new ads, L levels, n_l nodes of level l.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpr_rl.checks import check_codes
from gpr_rl.decoding.tree import Tree


def check_values(value: Tensor | None, num_ads: int) -> None:
    """Raise a ValueError where values are not [N], or NaN."""
    if value is not None and value.shape != (num_ads,):
        raise ValueError(f"ad_value must be [{num_ads}], one per ad, got {list(value.shape)}")
    if value is not None and value.isnan().any():
        raise ValueError(f"ad_value of ad {int(value.isnan().nonzero()[0])} is NaN")


def activated(tree: Tree, active: Tensor) -> Tree:
    """Return the tree with the ads that may be shown to anybody, bool [num_ads].

    Raises:
        ValueError: `active` is something else.
    """
    if active.dtype != torch.bool or active.shape != (tree.num_ads,):
        raise ValueError(
            f"active must be bool [{tree.num_ads}], got {active.dtype} {list(active.shape)}"
        )
    here = active.to(tree.device)[tree.ad_id.long()]
    return replace(tree, active=None if here.all() else here, version=tree.version + 1)


def retired(tree: Tree, ad_ids: Tensor) -> Tree:
    """Return the tree without these ads.

    Raises:
        ValueError: An ad that is not in the tree, or no ad is left.
    """
    ids, order = _ids(ad_ids), tree.ad_id.numpy()
    present = _present(tree, int(ids.max(initial=0)) + 1)
    if not present[ids].all():
        raise ValueError(f"ad {int(ids[~present[ids]][0])} is not in the catalogue")
    gone = np.zeros(len(present), dtype=np.bool_)
    gone[ids] = True
    alive = ~gone[order]
    if not alive.any():
        raise ValueError("a catalogue needs at least one ad: all would be retired")

    def kept(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[torch.from_numpy(alive_ads)]

    alive_ads, rows, codes = alive, [], []
    for runs, code in zip((tree.edge, *tree.first[::-1]), tree.code[::-1], strict=True):
        before = np.zeros(len(alive) + 1, dtype=np.int32)
        np.cumsum(alive, out=before[1:])
        start = before[runs.numpy()]
        alive = start[2:] > start[1:-1]
        rows.append(_with_ends(start[1:-1][alive], int(before[-1])))
        codes.append(torch.cat([code[:1], code[1:][torch.from_numpy(alive)]]))
    return replace(
        tree,
        ad_id=tree.ad_id[torch.from_numpy(alive_ads)],
        edge=rows[0],
        first=tuple(rows[:0:-1]),
        code=tuple(codes[::-1]),
        value=kept(tree.value),
        active=kept(tree.active),
        version=tree.version + 1,
    )


def added(tree: Tree, codes: Tensor, ad_ids: Tensor, value: Tensor | np.ndarray | None) -> Tree:
    """Return the tree with more ads; see `CodeTrie.add`."""
    codes, value = torch.as_tensor(codes), None if value is None else torch.as_tensor(value)
    ids = _ids(ad_ids)
    if codes.shape != (len(ids), tree.num_levels):
        raise ValueError(f"codes must be [{len(ids)}, {tree.num_levels}], got {list(codes.shape)}")
    check_codes(codes, tree.num_codes)
    check_values(value, len(ids))
    if (value is None) != (tree.value is None):
        missing = "needs a value" if value is None else "takes no value"
        raise ValueError(
            f"add {missing}: the catalogue {'has' if value is None else 'has no'} values"
        )
    num_ads = max(tree.num_ads, int(ids.max()) + 1)
    present = _present(tree, num_ads)
    if present[ids].any():
        raise ValueError(f"ad {int(ids[present[ids]][0])} is in the catalogue already")
    by_id = np.argsort(ids)  # equal paths and values: the lower id first
    part = Tree.build(codes[by_id], tree.num_codes, None if value is None else value[by_id])
    new_ids = ids[by_id][part.ad_id.numpy()]
    root = np.zeros(1, dtype=np.int64)
    stand, old, new = _Stand(root, np.ones(1, dtype=np.bool_)), root, root
    first, code = [], [tree.code[0]]
    for level in range(tree.num_levels):
        parent = _owners(part.first[level])
        below = _children_stand(tree, part, level, stand, parent)
        first.append(_regrown(tree.first[level], old, new[parent[~below.exists]]))
        fresh = part.code[level + 1].numpy()[1:][~below.exists]
        code.append(_inserted(tree.code[level + 1], below.inserted + 1, fresh))
        stand = below
        old, new = stand.places(len(tree.code[level + 1]) - 1)
    leaf = _owners(part.edge)
    at = _ads_stand(tree, part, stand, leaf, new_ids)
    value = None
    if tree.value is not None and part.value is not None:
        value = _inserted(tree.value, at, part.value.numpy())
    return replace(
        tree,
        num_ads=num_ads,
        ad_id=_inserted(tree.ad_id, at, new_ids),
        edge=_regrown(tree.edge, old, new[leaf]),
        first=tuple(first),
        code=tuple(code),
        value=value,
        active=None if tree.active is None else _inserted(tree.active, at, True),
        version=tree.version + 1,
    )


class _Stand(NamedTuple):
    """Where nodes of the added part stand among a level's nodes, numbered from 0 here."""

    at: NDArray[np.int64]
    """The node itself, or the one that it goes before."""
    exists: NDArray[np.bool_]

    @property
    def inserted(self) -> NDArray[np.int64]:
        """The nodes before which the missing ones go."""
        return self.at[~self.exists]

    def places(self, num_nodes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the new numbers of the level's old nodes, and of the part's."""
        before = np.bincount(self.inserted, minlength=num_nodes + 1).cumsum()[:num_nodes]
        old = np.arange(num_nodes) + before
        new = np.empty_like(self.at)
        new[self.exists] = old[self.at[self.exists]]
        new[~self.exists] = self.inserted + np.arange(len(self.inserted))
        return old, new


def _children_stand(
    tree: Tree, part: Tree, level: int, stand: _Stand, parent: NDArray[np.int64]
) -> _Stand:
    """Return where the part's nodes of the next level stand; `parent` are theirs in the part."""
    at, exists = stand.at[parent], stand.exists[parent]
    code = part.code[level + 1][1:].long()
    known = torch.from_numpy(np.where(exists, at + 1, 0))
    place = tree.place(level, known, code)
    begin = tree.first[level].numpy()[at + 1].astype(np.int64)
    return _Stand(np.where(exists, place.node.numpy() - 1, begin), place.exists.numpy() & exists)


def _ads_stand(
    tree: Tree, part: Tree, stand: _Stand, leaf: NDArray[np.int64], new_ids: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the place in the tree's order that each new ad goes before: by (-value, id)."""
    edge, ids = tree.edge.numpy(), tree.ad_id.numpy()
    at, exists = stand.at[leaf], stand.exists[leaf]
    low = edge[at + 1].astype(np.int64)
    high = np.where(exists, edge[np.minimum(at + 2, len(edge) - 1)], low)
    value = None if tree.value is None else tree.value.numpy()
    own = None if part.value is None else part.value.numpy()
    while (open_ := low < high).any():
        middle = np.minimum((low + high) >> 1, len(ids) - 1)
        before = ids[middle] < new_ids
        if value is not None and own is not None:
            theirs = value[middle]
            before = (theirs > own) | ((theirs == own) & before)
        low = np.where(open_ & before, middle + 1, low)
        high = np.where(open_ & ~before, middle, high)
    return low


def _owners(runs: Tensor) -> NDArray[np.int64]:
    """Return which node's run each member is in, both numbered from 0."""
    sizes = np.diff(runs.numpy())[1:]
    return np.repeat(np.arange(len(sizes)), sizes)


def _regrown(runs: Tensor, old: NDArray[np.int64], owner: NDArray[np.int64]) -> Tensor:
    """Return the edges of runs whose owners have the numbers `old` now and got members."""
    num_owners = max(int(old[-1]), int(owner.max(initial=0))) + 1
    size = np.bincount(owner, minlength=num_owners)
    size[old] += np.diff(runs.numpy())[1:]
    stop = size.cumsum()
    return _with_ends(stop - size, int(stop[-1]))


def _with_ends(start: NDArray, stop: int) -> Tensor:
    """Return the edges of runs: an empty one in front, and the end."""
    return torch.from_numpy(np.concatenate([[0], start, [stop]]).astype(np.int32))


def _inserted(x: Tensor, at: NDArray[np.int64], new: NDArray | bool) -> Tensor:
    return torch.from_numpy(np.insert(x.numpy(), at, new))


def _present(tree: Tree, least: int) -> NDArray[np.bool_]:
    """Return which ids are in the tree, of at least so many."""
    present = np.zeros(max(tree.num_ads, least), dtype=np.bool_)
    present[tree.ad_id.numpy()] = True
    return present


def _ids(ad_ids: Tensor) -> NDArray[np.int64]:
    """Return checked ids.

    Raises:
        ValueError: They are no integers [M] of at least 0 with M >= 1, each once.
    """
    ids = torch.as_tensor(ad_ids)
    if ids.ndim != 1 or not len(ids) or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"ad_ids must be integers [M], M >= 1, got {ids.dtype} {list(ids.shape)}")
    found = ids.cpu().numpy().astype(np.int64)
    if found.min() < 0:
        raise ValueError(f"ad_ids must be at least 0, got {int(found.min())}")
    unique, count = np.unique(found, return_counts=True)
    if (count > 1).any():
        raise ValueError(f"ad {int(unique[count > 1][0])} is given twice")
    return found
