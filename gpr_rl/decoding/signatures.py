"""Eligibility without a row of ads per request: many requests, few kinds of them.

A signature is a combination of what ads may ask for: targeting, hour, day. Requests point at
theirs. Of each signature it is kept which nodes hold an eligible ad, one bit per node.

Dims: B requests, S signatures, N ads, L levels, n_l nodes of level l.
"""

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from gpr_rl.checks import check_at_least
from gpr_rl.decoding.legal import LegalTrie
from gpr_rl.decoding.tree import Tree

CACHE_BYTES = 256 << 20
Eligibility: TypeAlias = Callable[[Tensor], Tensor]
"""Numbers of signatures, int64 [S], to their ads, bool [S, N]."""


class Signatures:
    """What is kept of signatures, for the catalogue's newest version; safe to share by threads."""

    def __init__(self, eligible: Bool[Tensor, "S N"] | Eligibility, max_bytes: int) -> None:
        """Keep at most `max_bytes`, and what the searches in progress need.

        Raises:
            ValueError: `eligible` is no bool [S, N]; `max_bytes` below 0.
        """
        if isinstance(eligible, Tensor) and (eligible.dtype != torch.bool or eligible.ndim != 2):
            raise ValueError(
                f"eligible must be bool [S, N], got {eligible.dtype} {list(eligible.shape)}"
            )
        check_at_least(0, max_bytes=max_bytes)
        self.max_bytes = max_bytes
        self.num_made = 0
        """How often a signature was looked through; the rest were found."""
        self._eligible = eligible
        self._lock = threading.Lock()
        self._store: _Store | None = None

    @property
    def num_bytes(self) -> int:
        """What is kept now, in bytes."""
        return 0 if self._store is None else self._store.num_bytes

    def row_bytes(self, tree: Tree) -> int:
        """Return what one signature takes, in bytes."""
        return int(_starts(tree)[-1])

    def ads_of(self, signature: Int[Tensor, " S"], num_ads: int) -> NDArray[np.bool_]:
        """Return the ads of signatures, [S, num_ads]; those the table does not know are not shown.

        Raises:
            ValueError: A number that the table does not have; what a function returns is no bool
                [S, N].
        """
        if isinstance(self._eligible, Tensor):
            outside = (signature < 0) | (signature >= len(self._eligible))
            if outside.any():
                raise ValueError(
                    f"signature must lie in [0, {len(self._eligible)}), "
                    f"got {int(signature[outside][0])}"
                )
            found = self._eligible[signature.to(self._eligible.device)]
        else:
            found = self._eligible(signature)
            if found.dtype != torch.bool or found.ndim != 2 or len(found) != len(signature):
                raise ValueError(
                    f"signatures' function must return bool [{len(signature)}, N], "
                    f"got {found.dtype} {list(found.shape)}"
                )
        ads = found.cpu().numpy()[:, :num_ads]
        return np.pad(ads, ((0, 0), (0, num_ads - ads.shape[1])))

    def restrict(self, tree: Tree, signature: Int[Tensor, " B"]) -> "SignatureTrie":
        """Return the tree of requests with these signatures."""
        if signature.dtype != torch.int64 or signature.ndim != 1:
            raise ValueError(
                f"signature must be int64 [B], got {signature.dtype} {list(signature.shape)}"
            )
        number, row = signature.unique(return_inverse=True)
        with self._lock:
            if self._store is None or self._store.tree is not tree:
                self._store = _Store(tree, self.max_bytes)
            store = self._store
            slots, made = store.find(number.tolist(), lambda part: self.ads_of(part, tree.num_ads))
            self.num_made += made
            legal = SignatureTrie(tree, store, slots[row])
            weakref.finalize(legal, store.release, slots.tolist())
        return legal


class _Store:
    """Bits of the nodes of one version, a row per signature: level by level, then the ads."""

    def __init__(self, tree: Tree, max_bytes: int) -> None:
        self.tree = tree
        self.start = _starts(tree)
        self._rows = max(1, max_bytes // int(self.start[-1]))
        self.bits = np.empty((min(self._rows, 64), self.start[-1]), dtype=np.uint8)
        self._slot: OrderedDict[int, int] = OrderedDict()  # the least recently used first
        self._users = [0] * len(self.bits)
        self._released: deque[int] = deque()

    @property
    def num_bytes(self) -> int:
        """What the signatures that are kept take."""
        return len(self._slot) * int(self.start[-1])

    def find(
        self, numbers: list[int], ads_of: Callable[[Tensor], NDArray[np.bool_]]
    ) -> tuple[Tensor, int]:
        """Return the rows of signatures, in use until `release`, and how many were made for it."""
        missing = [number for number in numbers if number not in self._slot]
        for number in numbers:
            if number in self._slot:
                self._use(number)
        for number in missing:
            ads = ads_of(torch.tensor([number]))[0]
            slot = self._free()
            self.bits[slot] = self._packed(ads)
            self._slot[number] = slot
            self._use(number)
        return torch.tensor([self._slot[number] for number in numbers]), len(missing)

    def _use(self, number: int) -> None:
        self._slot.move_to_end(number)
        self._users[self._slot[number]] += 1

    def release(self, slots: list[int]) -> None:
        """Say that a search has ended; takes no lock, as the garbage collector may call it."""
        self._released.extend(slots)

    def _free(self) -> int:
        """Return a row that nobody uses: a new one while there is room, or the oldest's."""
        used = len(self._slot)
        if used < len(self.bits):
            taken = set(self._slot.values())
            return next(slot for slot in range(len(self.bits)) if slot not in taken)
        if used < self._rows:
            return self._grow(min(2 * used, self._rows))
        while self._released:
            self._users[self._released.popleft()] -= 1
        for number, slot in self._slot.items():
            if not self._users[slot]:
                del self._slot[number]
                return slot
        return self._grow(2 * used)  # all are in use: more than `max_bytes` for now

    def _grow(self, rows: int) -> int:
        before = len(self.bits)
        more = np.empty((rows - before, self.bits.shape[1]), dtype=np.uint8)
        self.bits = np.concatenate([self.bits, more])  # searches keep the old array
        self._users += [0] * (rows - before)
        return before

    def _packed(self, ads: NDArray[np.bool_]) -> NDArray[np.uint8]:
        tree = self.tree
        alive = np.take(ads, tree.ad_id.numpy())
        if tree.active is not None:
            alive &= tree.active.numpy()
        legal = [alive]
        for runs in (tree.edge, *reversed(tree.first)):
            legal.append(np.logical_or.reduceat(legal[-1], runs.numpy()[1:-1]))
        of_level = [np.concatenate([[False], x]) for x in reversed(legal[1:])]
        return np.concatenate([np.packbits(x, bitorder="little") for x in (*of_level, alive)])


def _starts(tree: Tree) -> NDArray[np.int64]:
    """Return where the bits of every level, and of the ads, begin in a row, and its end; bytes."""
    sizes = [len(code) for code in tree.code] + [len(tree.ad_id)]
    return np.concatenate([[0], np.cumsum([(n + 7) // 8 for n in sizes])])


class SignatureTrie(LegalTrie):
    """The tree of B requests that point at signatures."""

    def __init__(self, tree: Tree, store: _Store, slot: Tensor) -> None:
        super().__init__(tree, batch_size=len(slot))
        self._bits = torch.from_numpy(store.bits).view(-1)
        self._start, self._slot = store.start, slot * store.bits.shape[1]

    def _bit(self, part: int, index: Tensor, begin: Tensor) -> Tensor:
        """Return bits number `index` of a level, or of the ads, in rows that begin at `begin`."""
        place = begin + (index >> 3) + int(self._start[part])
        byte = self._bits.index_select(0, place.view(-1)).view(place.shape)
        return byte.bitwise_right_shift_((index & 7).to(torch.uint8)).bitwise_and_(1).bool()

    def is_legal(self, level: int, node: Int[Tensor, "B ..."]) -> Bool[Tensor, "B ..."]:
        """Return whether nodes of `level` are legal."""
        return self._bit(level, node, self._slot.view(-1, *[1] * (node.ndim - 1)))

    def _legal_rows(self, level: int, child: Tensor, row: Tensor, node: Tensor) -> Tensor:
        return self._bit(level, child, self._slot[row // (node.numel() // len(node))])

    def leaf_ad(self, leaf: Int[Tensor, "B ..."]) -> Int[Tensor, "B ..."]:
        """Return the first eligible ad of nodes of the last level, -1 for an illegal one."""
        legal = self.is_legal(self.trie.num_levels, leaf).flatten()
        begin = self._slot.view(-1, *[1] * (leaf.ndim - 1)).expand(leaf.shape).flatten()
        place = self.trie.edge[leaf.flatten().long()].long()
        open_ = legal.nonzero()[:, 0]
        while len(open_):  # most paths have one ad
            blocked = ~self._bit(self.trie.num_levels + 1, place[open_], begin[open_])
            open_ = open_[blocked]
            place[open_] += 1
        last = len(self.trie.ad_id) - 1
        return self.trie.ad_id[place.clamp_max(last)].long().where(legal, -1).view(leaf.shape)

    @property
    def eligible(self) -> Bool[Tensor, "B N"]:
        """Which ads may be shown."""
        place = torch.arange(len(self.trie.ad_id)).expand(self.batch_size, -1)
        alive = self._bit(self.trie.num_levels + 1, place, self._slot[:, None])
        found = alive.new_zeros(self.batch_size, self.trie.num_ads)
        return found.index_copy_(1, self.trie.ad_id.long(), alive)
