"""What may follow the prefixes of a search: all V codes of each, or only the children there are.

Where a level of the tree has a table, options are the codes, [B, W, V], legal or not. Below, where
a prefix has few children of its V codes, they are those children: [B, W, C], or, where some nodes
have many and most have few, in one row without gaps [B, M]. Searches see the same either way: a
`child` is a place in an option array made flat, and equal scores go to the lower one.

Dims: B requests, W prefixes, V codes per level, C options of a prefix, M of a request, k chosen.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from gpr_rl.decoding.legal import LegalTrie
from gpr_rl.decoding.tree import DEAD


class _WideOptions:
    """As many options for every prefix; arrays are [B, W, C]."""

    def __init__(self, is_legal: Tensor, log_prob: Tensor) -> None:
        self.is_legal, self._size = is_legal, is_legal.shape[-1]
        self.log_prob = log_prob.where(is_legal, -torch.inf)

    def renormalize(self) -> None:
        """Let each prefix with a legal code sum to probability one."""
        self.log_prob = self.log_prob.log_softmax(-1).where(self.is_legal, -torch.inf)

    def at(self, of_prefix: Tensor) -> Tensor:
        """Return what a prefix [B, W] has, for each of its options."""
        return of_prefix[..., None]

    def amax(self, x: Tensor) -> Tensor:
        """Return the maximum over each prefix's options, [B, W]."""
        return x.amax(-1)

    def by_prefix(self, x: Tensor) -> Tensor:
        """Return an option array prefix by prefix, [B, W, C], -inf behind a prefix's last."""
        return x

    def of_prefixes(self, x: Tensor) -> Tensor:
        """Return what `by_prefix` took, from [B, W, C]."""
        return x

    def child(self, parent: Tensor, option: Tensor) -> Tensor:
        """Return the places of prefixes' options, in the order of `by_prefix`, [B, ...]."""
        return parent * self._size + option


class CodeOptions(_WideOptions):
    """Every code of every prefix: C is V."""

    def __init__(self, legal: LegalTrie, level: int, node: Tensor, log_prob: Tensor) -> None:
        """Hold the options of nodes [B, W] of `level`; the policy's `log_prob` is [B, W, V]."""
        super().__init__(legal.child_mask(level, node), log_prob)
        self._tree, self._level, self._node = legal.trie, level, node

    @property
    def code(self) -> Tensor:
        """The code of each option."""
        return torch.arange(self._size, device=self._node.device)

    def pick(self, child: Int[Tensor, "B k"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return parent, code and node of children, [B, k] each."""
        parent, code = child // self._size, child % self._size
        return parent, code, self._tree.child(self._level, self._node.gather(1, parent), code)


class ChildOptions(_WideOptions):
    """The children that there are: C is the largest number that a node of the level has."""

    def __init__(self, legal: LegalTrie, level: int, node: Tensor, log_prob: Tensor) -> None:
        """Hold the options of nodes [B, W] of `level`; the policy's `log_prob` is [B, W, V]."""
        run, codes = legal.trie.first[level], legal.trie.code[level + 1]
        flat = node.reshape(-1)
        stop = run.index_select(0, flat + 1).view(*node.shape, 1)
        child = run.index_select(0, flat).view(stop.shape) + legal.trie.slots[level]
        real = child <= stop
        child = child.clamp_max(len(codes) - 1)
        self.code = codes.index_select(0, child.view(-1)).view(child.shape).long()
        self._node = child
        own = torch.arange(flat.numel(), device=flat.device).view(stop.shape) * log_prob.shape[2]
        # several times as fast as gather
        chosen = log_prob.reshape(-1).index_select(0, (self.code + own).view(-1))
        super().__init__(real & legal.is_legal(level + 1, child), chosen.view(child.shape))

    def pick(self, child: Int[Tensor, "B k"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return parent, code and node of children, [B, k] each."""
        code, node = (x.flatten(1).gather(1, child) for x in (self.code, self._node))
        return child // self._size, code, node


class PackedOptions:
    """The children that there are, in one row per request; arrays are [B, M], the last dead."""

    def __init__(
        self, legal: LegalTrie, level: int, node: Int[Tensor, "B W"], log_prob: Tensor
    ) -> None:
        """Hold the options of nodes of `level`, which the policy gives `log_prob` [B, W, V]."""
        batch, self._width = node.shape
        row, child, code, is_legal = legal.children(level, node)
        request = row // self._width
        count = torch.bincount(request, minlength=batch)
        size = int(count.max()) + 1
        offset = count.cumsum(0) - count
        place = torch.arange(len(row), device=row.device) - offset[request] + request * size
        blank = torch.zeros(batch * size, dtype=torch.int64, device=row.device)

        def spread(x: Tensor) -> Tensor:
            return blank.index_copy(0, place, x.to(blank.dtype)).view(batch, size)

        self.code = spread(code)
        self._node = spread(child)
        self._parent = spread(row - request * self._width)
        self.is_legal = spread(is_legal).bool()
        flat = self._parent * log_prob.shape[-1] + self.code
        chosen = log_prob.flatten(1).gather(1, flat)
        self.log_prob = chosen.where(self.is_legal, -torch.inf)
        self._count = torch.bincount(row, minlength=node.numel()).view(node.shape)
        self._begin = self._count.cumsum(1) - self._count

    def renormalize(self) -> None:
        """Let each prefix with a legal code sum to probability one."""
        largest = self.amax(self.log_prob)
        largest = largest.where(largest > -torch.inf, 0.0)
        share = (self.log_prob - self.at(largest)).exp()
        total = torch.zeros_like(largest).scatter_add_(1, self._parent, share)
        normal = self.log_prob - self.at(largest + total.log())
        self.log_prob = normal.where(self.is_legal, -torch.inf)

    def at(self, of_prefix: Tensor) -> Tensor:
        """Return what a prefix [B, W] has, for each of its options."""
        return of_prefix.gather(1, self._parent)

    def amax(self, x: Tensor) -> Tensor:
        """Return the maximum over each prefix's options, [B, W]."""
        none = x.new_full((len(x), self._width), -torch.inf)
        return none.scatter_reduce_(1, self._parent, x.where(self.is_legal, -torch.inf), "amax")

    @property
    def _place(self) -> Tensor:
        """The place of each option among its prefix's."""
        number = torch.arange(self.code.shape[1], device=self.code.device)
        return (number - self.at(self._begin)).clamp_min(0)

    def by_prefix(self, x: Tensor) -> Tensor:
        """Return an option array prefix by prefix, [B, W, C], -inf behind a prefix's last."""
        real, place = self._node != DEAD, self._place
        size = int(place.where(real, 0).max()) + 1
        wide = x.new_full((len(x), self._width * size), -torch.inf)
        at = (self._parent * size + place).where(real, 0)
        wide = wide.scatter_reduce_(1, at, x.where(real, -torch.inf), "amax")
        return wide.view(len(x), self._width, size)

    def of_prefixes(self, x: Tensor) -> Tensor:
        """Return what `by_prefix` took, from [B, W, C]."""
        at = (self._parent * x.shape[2] + self._place).clamp_max(x[0].numel() - 1)
        return x.flatten(1).gather(1, at).where(self._node != DEAD, -torch.inf)

    def child(self, parent: Tensor, option: Tensor) -> Tensor:
        """Return the places of prefixes' options, in the order of `by_prefix`, [B, ...].

        The last place of a row is nobody's: there goes what a prefix has not.
        """
        flat = parent.flatten(1)
        begin, count = (x.gather(1, flat).view(parent.shape) for x in (self._begin, self._count))
        return (begin + option).where(option < count, self.code.shape[1] - 1)

    def pick(self, child: Int[Tensor, "B k"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return parent, code and node of children, [B, k] each."""
        parts = (self._parent, self.code, self._node)
        parent, code, node = (part.gather(1, child) for part in parts)
        return parent, code, node.int()


Options = CodeOptions | ChildOptions | PackedOptions


def options_of(legal: LegalTrie, level: int, node: Int[Tensor, "B W"], log_prob: Tensor) -> Options:
    """Return what may follow nodes of `level`; `log_prob` [B, W, V] is the policy's."""
    tree = legal.trie
    if tree.is_dense(level):
        return CodeOptions(legal, level, node, log_prob)
    kind = PackedOptions if tree.is_uneven(level) else ChildOptions
    return kind(legal, level, node, log_prob)
