"""Mixture-of-Recursions in the HSD: a router says how often each token is thought over (GPR 2.2).

After Bae et al. 2025 (arXiv 2507.10524), with these choices of theirs: Middle-Cycle sharing, their
best (a first and a last block of their own, the blocks between them applied again and again);
token-choice routing, because expert choice (the top k tokens of a step) would look at tokens to
come and at the rest of the batch; keys and values per recursion, so that a token attends to those
that are as deep as itself. GPR names the mechanism only.

Dims: B sequences, T tokens, M real tokens by type, A tokens still active, R recursions, D width.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from gpr_rl.models.layers.attention import Pairs, compacted
from gpr_rl.models.layers.grouping import TokenLayout

Block = Callable[[Tensor, TokenLayout, Pairs], Tensor]


class RecursionRouter(nn.Module):
    """Scores each depth 1..R from the token's own state."""

    def __init__(self, dim: int, num_recursions: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, num_recursions)

    def forward(self, x: Float[Tensor, "M D"]) -> Float[Tensor, "M R"]:
        """Return the logits of every depth."""
        return self.output(self.norm(x))


def split_blocks(num_blocks: int) -> tuple[slice, slice, slice]:
    """Return which blocks come first, which are shared by all recursions, and which come last.

    The number of blocks, and so of parameters, is that of the plain stack: with three or more the
    middle ones are shared (Middle-Cycle), with two the second, with one that one (Cycle).
    """
    first = min(1, num_blocks - 1)
    end = max(first + 1, num_blocks - 1)
    return slice(0, first), slice(first, end), slice(end, num_blocks)


def depth_of(logits: Float[Tensor, "*batch R"]) -> Int[Tensor, "*batch"]:
    """Return how often each token is thought over, in 1..R: the depth its router likes best."""
    return logits.argmax(-1) + 1


def recurse(
    x: Float[Tensor, "M D"],
    logits: Float[Tensor, "M R"],
    blocks: Sequence[Block],
    layout: TokenLayout,
    pairs: Pairs,
) -> Float[Tensor, "M D"]:
    """Return token states after as many recursions as each token's router chose.

    x <- x + p (blocks(x) - x) for r = 1..depth, p the probability of the chosen depth: by it the
    router learns whether its choice was of use. That p scales all of a token's steps alike, and
    through a residual, is decided here. At step r only tokens with depth >= r are computed, and
    they attend to each other only; one that has left costs nothing.
    """
    depth = depth_of(logits)
    weight = logits.softmax(-1).gather(-1, depth[:, None] - 1)
    for step in range(1, logits.shape[1] + 1):
        active = (depth >= step).nonzero()[:, 0]
        if len(active) == len(depth):  # nobody has left
            x = x + weight * (apply_blocks(blocks, x, layout, pairs) - x)
        elif len(active):
            part = x.index_select(0, active)
            moved = apply_blocks(blocks, part, *_active(layout, pairs, active))
            part = part + weight.index_select(0, active) * (moved - part)
            x = x.index_copy(0, active, part)
    return x


def apply_blocks(blocks: Sequence[Block], x: Tensor, layout: TokenLayout, pairs: Pairs) -> Tensor:
    """Return the packed tokens after one block after the other."""
    for block in blocks:
        x = block(x, layout, pairs)
    return x


def _active(layout: TokenLayout, pairs: Pairs, active: Tensor) -> tuple[TokenLayout, Pairs]:
    """Return layout and pairs of the packed tokens `active` [A], ascending, as if all there was."""
    rows = layout.rows.index_select(0, active)
    num_tokens = layout.shape[1]
    smaller, place = compacted(pairs, rows // num_tokens, rows % num_tokens)
    slot = place.new_zeros(smaller.kind.numel())
    slot[place] = torch.arange(len(place), device=place.device)
    ends = torch.tensor(layout.sizes, device=active.device).cumsum(0)
    below = torch.searchsorted(active, ends)
    sizes = torch.diff(below, prepend=below.new_zeros(1)).tolist()
    batch, length = smaller.kind.shape
    return TokenLayout((batch, length), place, slot, tuple(sizes)), smaller


def depth_share(
    logits: Float[Tensor, "*batch R"], real: Bool[Tensor, "*batch"]
) -> Float[Tensor, " R"]:
    """Return the share of real tokens that stop at each depth; worth logging."""
    stopped = F.one_hot(depth_of(logits[real]) - 1, logits.shape[-1])
    return stopped.to(logits.dtype).mean(0)


def balance_loss(
    logits: Float[Tensor, "*batch R"], real: Bool[Tensor, "*batch"]
) -> Float[Tensor, ""]:
    """Return R sum_r f_r P_r over real tokens, 1 at balance and R where one depth takes all.

    f_r is the share of tokens that stop at depth r, P_r the mean probability of r, through which
    the gradient goes (Fedus et al. 2022, Eq. 4, with depths as the experts).
    """
    probability = logits[real].softmax(-1).mean(0)
    return logits.shape[-1] * (depth_share(logits, real).detach() * probability).sum()


def z_loss(logits: Float[Tensor, "*batch R"], real: Bool[Tensor, "*batch"]) -> Float[Tensor, ""]:
    """Return the mean squared log-sum-exp of real tokens' logits, which keeps them small.

    Zoph et al. 2022, Eq. 5.
    """
    return logits[real].logsumexp(-1).square().mean()
