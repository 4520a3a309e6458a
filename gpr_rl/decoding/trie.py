"""Which codes may follow a prefix: the prefix tree of all ads, cut down to one user's (GPR 2.3).

The ads are sorted by path, so the ads below any node are one run of that order (`tree`). A node is
legal for a request when its run holds an eligible ad (`legal`, `signatures`).

Dims: B requests, N ads, M new ads, S signatures, L levels, V codes per level, P distinct paths.
"""

import threading
from pathlib import Path
from typing import overload

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from gpr_rl.checks import check_at_least, check_codes
from gpr_rl.decoding import storage, updates
from gpr_rl.decoding.legal import EligibleTrie, LegalTrie, check_eligible
from gpr_rl.decoding.signatures import CACHE_BYTES, Eligibility, Signatures, SignatureTrie
from gpr_rl.decoding.tree import DENSE_BYTES, Tree, TreeRuns


class CodeTrie:
    """The prefix tree of N ads' codes.

    Several ads may share a path; it then stands for the eligible ad with the highest `ad_value`
    (`docs/decisions.md`), ties and no `ad_value` giving the lowest ad id.

    Ads come and go while searches run (`add`, `retire`, `set_active`): every update makes a new
    version, and whoever has called `restrict` keeps the one of then. Memory is 8 bytes per distinct
    prefix and 4 per ad, at most, and a table of 4 V bytes per node of the levels where that stays
    below `dense_bytes`.
    """

    def __init__(
        self,
        codes: Int[Tensor, "N L"] | Int[np.ndarray, "N L"],
        num_codes: int,
        ad_value: Tensor | np.ndarray | None = None,
        *,
        dense_bytes: int | None = None,
    ) -> None:
        """Build the tree of paths with codes in [0, num_codes), of ads 0 to N - 1.

        `ad_value` is a number per ad [N], e.g. expected eCPM: the highest wins a shared path.
        `dense_bytes` is the most that a level's table may take; 0: no tables, None: 32 MiB.

        Raises:
            ValueError: No ads, a code out of range, or an `ad_value` that is NaN or misshapen.
        """
        codes, num_codes = torch.as_tensor(codes), int(num_codes)
        value = None if ad_value is None else torch.as_tensor(ad_value)
        if codes.ndim != 2 or 0 in codes.shape:
            raise ValueError(f"codes must be [N, L] with N, L >= 1, got {list(codes.shape)}")
        dense_bytes = DENSE_BYTES if dense_bytes is None else dense_bytes
        check_at_least(0, dense_bytes=dense_bytes)
        check_codes(codes, num_codes)
        updates.check_values(value, len(codes))
        self._start(Tree.build(codes, num_codes, value, dense_bytes=dense_bytes))

    def _start(self, tree: Tree) -> None:
        self._set(tree)
        self._writing = threading.Lock()
        self._signatures: Signatures | None = None

    def _set(self, tree: Tree) -> None:
        self._now = tree, _every(tree)  # one assignment: a search sees the one or the other

    @classmethod
    def of(cls, tree: Tree) -> "CodeTrie":
        """Return the handle of a tree."""
        made = cls.__new__(cls)
        made._start(tree)
        return made

    def snapshot(self) -> "CodeTrie":
        """Return a handle of the catalogue as it is now, which later updates of this one leave."""
        made = CodeTrie.__new__(CodeTrie)
        made._now, made._signatures = self._now, self._signatures
        made._writing = threading.Lock()
        return made

    @property
    def tree(self) -> Tree:
        """The catalogue as it is now."""
        return self._now[0]

    @property
    def version(self) -> int:
        """How many updates there were."""
        return self.tree.version

    @property
    def num_codes(self) -> int:
        """V, the largest where levels differ."""
        return self.tree.num_codes

    @property
    def num_levels(self) -> int:
        """L."""
        return self.tree.num_levels

    @property
    def num_ads(self) -> int:
        """The largest ad id that there ever was, plus one: the columns of `eligible`."""
        return self.tree.num_ads

    @property
    def num_paths(self) -> int:
        """P, the number of distinct paths."""
        return self.tree.num_paths

    @property
    def paths(self) -> Int[Tensor, "P L"]:
        """The distinct paths in lexicographic order."""
        return self.tree.paths

    @property
    def codes(self) -> Int[Tensor, "N L"]:
        """The path of every ad id; -1 for an ad that is not there any more."""
        return self.tree.codes

    @property
    def runs(self) -> TreeRuns:
        """The tree as numpy arrays, for stepping down it code by code."""
        return self.tree.runs

    def to(self, device: torch.device | str) -> "CodeTrie":
        """Return the same tree on a device; itself where it is there already."""
        here = torch.device(device) == self.tree.device
        return self if here else CodeTrie.of(self.tree.to(device))

    @overload
    def restrict(self, eligible: Tensor) -> EligibleTrie: ...

    @overload
    def restrict(
        self, eligible: Tensor | None = None, signature: Tensor | None = None
    ) -> LegalTrie: ...

    def restrict(
        self,
        eligible: Bool[Tensor, "B N"] | None = None,
        signature: Int[Tensor, " B"] | None = None,
    ) -> LegalTrie:
        """Return the tree of the ads each request may show, as the catalogue is now.

        Either `eligible` says it ad by ad, or `signature` by rows of `signatures`; neither: all
        ads. Ads that are not active are shown to nobody.

        Raises:
            ValueError: `eligible` is not bool [B, N]; both; a signature without `signatures`, or
                where the tree is not on the CPU.
        """
        tree, every = self._now
        if signature is not None:
            if eligible is not None:
                raise ValueError("give eligible or signature, not both")
            if self._signatures is None:
                raise ValueError("signature needs `CodeTrie.signatures` to be called before")
            _check_on_cpu(tree, "signatures are kept")
            return self._signatures.restrict(tree, signature)
        if eligible is None:
            return every
        check_eligible(eligible, tree.num_ads)
        active = tree.active_ads
        return EligibleTrie(tree, eligible if active is None else eligible & active)

    def signatures(
        self,
        eligible: Bool[Tensor, "S N"] | Eligibility,
        max_bytes: int = CACHE_BYTES,
    ) -> Signatures:
        """Set what `signature` refers to: rows of a table, or what a function says of numbers.

        A function gets int64 [S] and returns bool [S, N]; N may be fewer than `num_ads`, ads beyond
        are not eligible. What is made of a signature is kept, in at most `max_bytes`, the least
        recently used going first.
        """
        self._signatures = Signatures(eligible, max_bytes)
        return self._signatures

    def legal_mask(
        self, prefix: Int[Tensor, "B *rest l"], eligible: Bool[Tensor, "B N"] | None = None
    ) -> Bool[Tensor, "B *rest V"]:
        """Return which codes may follow each prefix; see `restrict` and `LegalTrie.mask`."""
        return self.restrict(eligible).mask(prefix)

    def root(self, *shape: int) -> Int[Tensor, "..."]:
        """Return the root as nodes of the given shape."""
        return self._now[1].root(*shape)

    def child(
        self, level: int, node: Int[Tensor, "*s"], code: Int[Tensor, "*s"]
    ) -> Int[Tensor, "*s"]:
        """Return the nodes reached from nodes of `level` (0 is the root's) by `code`."""
        return self.tree.child(level, node, code)

    def add(
        self,
        codes: Int[Tensor, "M L"],
        ad_ids: Int[Tensor, " M"],
        value: Tensor | np.ndarray | None = None,
    ) -> None:
        """Add ads under ids that are free: new ones, or those of retired ads.

        Raises:
            ValueError: A code out of range, an id below 0, given twice or in use; a value missing
                where the other ads have one, or given where they have none. Nothing is changed.
        """
        _check_on_cpu(self.tree, "ads are added")
        with self._writing:
            self._set(updates.added(self.tree, codes, ad_ids, value))

    def retire(self, ad_ids: Int[Tensor, " M"]) -> None:
        """Take ads out for good; `add` may use their ids again.

        Raises:
            ValueError: An ad that is not in the tree. Nothing is changed.
        """
        _check_on_cpu(self.tree, "ads are retired")
        with self._writing:
            self._set(updates.retired(self.tree, ad_ids))

    def set_active(self, active: Bool[Tensor, " N"]) -> None:
        """Say of every ad id whether the ad may be shown at all, e.g. while its budget lasts.

        Raises:
            ValueError: `active` is not bool [num_ads]. Nothing is changed.
        """
        with self._writing:
            self._set(updates.activated(self.tree, active))

    def save(self, folder: str | Path) -> None:
        """Write the catalogue as it is now into a new folder, from which many processes can map it.

        Raises:
            OSError: The folder can't be made, or exists.
        """
        storage.save_tree(self.tree, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> "CodeTrie":
        """Return a saved catalogue; its arrays stay in the files until they are read.

        Raises:
            CheckpointError: A file is missing, damaged, or of another catalogue.
        """
        return cls.of(storage.load_tree(Path(folder)))


def _check_on_cpu(tree: Tree, what: str) -> None:
    if tree.device.type != "cpu":
        raise ValueError(f"{what} on the CPU; this catalogue is on {tree.device}")


def _every(tree: Tree) -> LegalTrie:
    """Return the tree for requests that may see whatever may be shown to anybody."""
    active = tree.active_ads
    return LegalTrie(tree) if active is None else EligibleTrie(tree, active[None])


__all__ = ["CodeTrie", "EligibleTrie", "LegalTrie", "SignatureTrie", "TreeRuns"]
