"""Budgeted tree search (V-STAR, arXiv 2602.10699): where value and doubt are high, look further.

A search holds a tree of prefixes per request. It begins as a small beam and then grows by one
prefix per request and turn. Which one: descend from the root to where
U = G + exploration sqrt(ln(N_root + 1) / (N + 1)) is largest, with G = V / reward_scale +
entropy_weight H and N the visits; there, if G is at least the mean G of that depth, draw a child
that is not there yet from the policy. The source is silent here: staying where one is competes, by
its own U, with going on to a child; what can't grow any more is left out.

Dims: B requests, M prefixes of a request's tree, W prefixes looked at in one go, K candidates,
L levels, V codes per level.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad

from gpr_rl.checks import check_at_least, check_positive
from gpr_rl.decoding.legal import LegalTrie
from gpr_rl.decoding.policy import pick
from gpr_rl.decoding.trie import CodeTrie
from gpr_rl.random import Purpose, uniform
from gpr_rl.schema import Candidates

_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class TreeSearchConfig:
    """How a tree search weighs what it knows."""

    width: int = 8
    """Of the beam that it begins with."""
    entropy_weight: float = 0.1
    """lambda, in standard deviations of the reward per nat."""
    exploration: float = 1.0
    """beta. Not given in the source."""
    reward_scale: float = 1.0
    """The reward's standard deviation, in the unit of the policy's values."""

    def __post_init__(self) -> None:
        check_at_least(1, width=self.width)
        check_at_least(0, entropy_weight=self.entropy_weight, exploration=self.exploration)
        check_positive(reward_scale=self.reward_scale)


@torch.no_grad()
def tree_search(
    policy: Any,
    request: Any,
    trie: CodeTrie,
    num_candidates: int,
    budget: int,
    seed: int,
    draw: int,
    eligible: Bool[Tensor, "B N"] | None = None,
    *,
    signature: Int[Tensor, " B"] | None = None,
    config: TreeSearchConfig | None = None,
) -> Candidates:
    """Return the K paths of highest value that a search of at most `budget` model steps found.

    A step asks the policy about one prefix, the empty one and whole paths included. A whole path's
    value is the policy's `final_value`, where it has one, else that of the prefix before its last
    code. Candidates are no independent draws. `log_prob` is the policy's own over legal codes.
    Arguments and errors as in `sample_paths`; a request's paths don't depend on the batch.

    Raises:
        ValueError: A budget below what the first beam needs, 1 + width L.
    """
    config = config or TreeSearchConfig()
    check_at_least(1, num_candidates=num_candidates)
    least = 1 + config.width * trie.num_levels
    if budget < least:
        raise ValueError(f"budget must be at least 1 + width L = {least}, got {budget}")
    found = _Prefixes(policy, request, trie.restrict(eligible, signature), budget, config)
    for level in range(trie.num_levels):
        found.widen(level, config.width)
    asker, every = request.request_id[:, None], torch.arange(trie.num_codes)
    numbers = [asker.new_tensor(draw), every.to(asker.device)]
    for turn in range(budget - found.size):
        keys = numbers[0], asker.new_tensor(turn), numbers[1]
        found.grow(uniform(seed, Purpose.TREE_SEARCH, asker, *keys))
    return found.candidates(num_candidates)


def rows_of(context: Any, row: Int[Tensor, " R"]) -> Any:
    """Return the part of a policy's context that is of some requests."""
    if isinstance(context, tuple):
        parts = [rows_of(part, row) for part in context]
        return type(context)(*parts) if hasattr(context, "_fields") else tuple(parts)
    return None if context is None else context[row]


class _Prefixes:
    """The trees of B requests: arrays [B, M], of which the first `size` columns are filled."""

    def __init__(
        self, policy: Any, request: Any, legal: LegalTrie, budget: int, config: TreeSearchConfig
    ) -> None:
        self._policy, self._legal, self._config = policy, legal, config
        self._context = policy.encode(request)
        self._num_levels, self._num_codes = legal.trie.num_levels, legal.trie.num_codes
        batch, device = len(request.request_id), legal.trie.device
        self.size = 0
        empty = torch.zeros(batch, 1, 0, dtype=torch.int64, device=device)
        root = legal.root(batch, 1)
        self._size_of_batch = batch
        options, value = self._ask(torch.arange(batch, device=device), empty, root)

        def blank(value: float | int, *more: int, like: Tensor = options) -> Tensor:
            return like.new_full((batch, budget, *more), value)

        self._codes = blank(0, self._num_levels, like=empty)
        self._level, self._parent = blank(-1, like=empty), blank(-1, like=empty)
        self._visits, self._node = blank(0, like=empty), blank(0, like=root)
        self._log_prob, self._values = blank(0.0, self._num_levels), blank(0.0, self._num_levels)
        self._value, self._goal = blank(0.0), blank(-math.inf)
        self._next = blank(-math.inf, self._num_codes)  # of children that are not there yet
        self._set(empty.new_full((batch, 1), -1), empty.new_zeros(batch, 1), root, options, value)

    def _ask(self, row: Tensor, codes: Tensor, node: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities over legal codes [R, W, V] of some requests, and values."""
        log_prob, value = self._policy.step(rows_of(self._context, row), codes)
        every = node.new_zeros(self._size_of_batch, node.shape[1]).index_copy(0, row, node)
        mask = self._legal.child_mask(codes.shape[2], every)[row]
        log_prob = log_prob.where(mask, -torch.inf)
        return log_prob.log_softmax(-1).where(mask, -torch.inf), value

    def _set(
        self, parent: Tensor, level: Tensor, node: Tensor, options: Tensor, value: Tensor
    ) -> None:
        """Fill the next W columns; `level` [B, W] is -1 where there is nothing."""
        here = slice(self.size, self.size + parent.shape[1])
        self.size = here.stop
        there, inner = level >= 0, (level >= 0) & (level < self._num_levels)
        self._parent[:, here], self._level[:, here], self._node[:, here] = parent, level, node
        self._value[:, here] = value
        options = options.where(inner[..., None], -torch.inf)
        chance = options.exp()
        entropy = -(chance * options.where(chance > 0, 0.0)).sum(-1)
        config = self._config
        goal = value / config.reward_scale + config.entropy_weight * entropy
        self._goal[:, here] = goal.where(inner, -torch.inf)
        self._next[:, here] = options
        column = torch.arange(here.start, here.stop, device=parent.device).expand_as(parent)
        for _ in range(self._num_levels + 1):  # up to the root
            self._visits.scatter_add_(1, column.clamp_min(0), (there & (column >= 0)).long())
            column = self._parent.gather(1, column.clamp_min(0)).where(column >= 0, -1)

    def _add(self, parent: Tensor, code: Tensor, there: Tensor) -> None:
        """Add children [B, W] of columns by these codes, and ask the policy about them."""
        here = slice(self.size, self.size + parent.shape[1])
        level = self._level.gather(1, parent) + 1
        spot = parent * self._num_codes + code
        own = self._next.flatten(1).gather(1, spot)
        at = (level - 1).clamp_min(0)[..., None]
        self._codes[:, here] = pick(self._codes, parent).scatter(2, at, code[..., None])
        self._log_prob[:, here] = pick(self._log_prob, parent).scatter(2, at, own[..., None])
        before = self._value.gather(1, parent)[..., None]
        self._values[:, here] = pick(self._values, parent).scatter(2, at, before)
        options = self._next.new_full((*parent.shape, self._num_codes), -torch.inf)
        value, node = self._value.gather(1, parent), torch.zeros_like(parent, dtype=torch.int32)
        for depth in range(1, self._num_levels + 1):  # the policy is asked at one length a time
            now = there & (level == depth)
            if not now.any():
                continue
            above = self._node.gather(1, parent)
            child = self._legal.trie.child(depth - 1, above.where(now, 0), code)
            node = child.where(now, node)
            row = now.any(1).nonzero()[:, 0]
            codes = self._codes[row, here, :depth]
            if depth < self._num_levels:
                options[row], value[row] = self._ask(row, codes, child[row])
            elif hasattr(self._policy, "final_value"):
                value[row] = self._policy.final_value(rows_of(self._context, row), codes)
        self._set(parent, level.where(there, -1), node, options, value)
        used = torch.zeros_like(self._next, dtype=torch.int8).flatten(1)
        used.scatter_add_(1, spot, there.to(used.dtype))
        self._next.masked_fill_(used.view_as(self._next) > 0, -torch.inf)

    def widen(self, level: int, width: int) -> None:
        """Add the `width` likeliest children of the prefixes that have `level` codes."""
        here = slice(0, self.size)
        total = self._log_prob[:, here].sum(-1)
        total = total.where(self._level[:, here] == level, -torch.inf)
        children = (total[..., None] + self._next[:, here]).flatten(1)
        best, child = pad(children, (0, width), value=-torch.inf).topk(width, dim=1)
        there = best > -torch.inf
        child = child.where(there, 0)
        self._add(child // self._num_codes, child % self._num_codes, there)

    def grow(self, noise: Tensor) -> None:
        """Add one child to each request's tree, by noise [B, V] in (0, 1)."""
        column = self._choose()
        options = pick(self._next, column.clamp_min(0)[:, None])
        code = (options - (-noise[:, None].log()).log()).argmax(-1)
        there = (column >= 0)[:, None]
        self._add(column.clamp_min(0)[:, None], code.where(there, 0), there)

    def _choose(self) -> Int[Tensor, " B"]:
        """Return the column of each request that a child is added to, -1 where none can grow."""
        here = slice(0, self.size)
        goal, parent = self._goal[:, here], self._parent[:, here]
        grows = (self._next[:, here].amax(-1) > -torch.inf) & self._is_above_mean(here)
        live = grows.clone()  # it, or something below it, can grow
        for _ in range(self._num_levels - 1):
            up = torch.zeros_like(live, dtype=torch.int8)
            up.scatter_reduce_(1, parent.clamp_min(0), (live & (parent >= 0)).to(up.dtype), "amax")
            live |= up.bool()
        visits = self._visits[:, here].to(goal.dtype)
        bonus = ((visits[:, :1] + 1).log() / (visits + 1)).sqrt()
        upper = (goal + self._config.exploration * bonus).where(live, -torch.inf)
        column = torch.zeros(len(goal), 1, dtype=torch.int64, device=goal.device)
        for _ in range(self._num_levels - 1):
            best, child = upper.where(parent == column, -torch.inf).max(1, keepdim=True)
            own = upper.gather(1, column).where(grows.gather(1, column), -torch.inf)
            column = torch.where(best > own, child, column)
        return column[:, 0].where(live[:, 0], -1)

    def _is_above_mean(self, here: slice) -> Bool[Tensor, "B M"]:
        """Return whether G is at least the mean of its depth."""
        goal, level = self._goal[:, here], self._level[:, here]
        inner, depth = goal > -torch.inf, level.clamp_min(0)
        none = goal.new_zeros(len(goal), self._num_levels + 1)
        total = none.scatter_add(1, depth, goal.where(inner, 0.0))
        count = none.scatter_add(1, depth, inner.to(goal.dtype))
        mean = (total / count.clamp_min(1)).gather(1, depth)
        return inner & (goal >= mean - _ROUNDING * mean.abs())

    def candidates(self, num_candidates: int) -> Candidates:
        """Return the whole paths of highest value, ties to the one that was found first."""
        whole = self._level == self._num_levels
        score = pad(self._value.where(whole, -torch.inf), (0, num_candidates), value=-torch.inf)
        order = score.argsort(dim=1, descending=True, stable=True)[:, :num_candidates]
        valid = score.gather(1, order) > -torch.inf
        order = order.where(valid, 0)

        def field(x: Tensor, nothing: float | int) -> Tensor:
            shown = valid.view(*valid.shape, *[1] * (x.ndim - 2))
            return pick(x, order).where(shown, nothing)

        leaf = pick(self._node, order).where(valid, 0)
        return Candidates(
            codes=field(self._codes, 0),
            log_prob=field(self._log_prob, -math.inf),
            value=field(self._values, 0.0),
            ad_id=self._legal.leaf_ad(leaf),
            valid=valid,
            batch_size=[len(valid)],
        )
