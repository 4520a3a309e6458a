"""Slates of distinct ads drawn one below the other: a policy's probabilities, chosen ads left out.

Given p over N ads, position s shows ad a with p(a) / (1 - p(ads above)) (Plackett and Luce). Draws,
conditional probabilities and marginals are exact; sums over all slates of three positions take
N^2 steps, not N^3, because the last position's sum is known from the first two.

Dims: P requests with probabilities, n rows (slates), S positions, N ads.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

MAX_POSITIONS = 3
"""Of the exact marginals and expectations."""


def draw_slates(
    probability: Float[Tensor, "P N"], row: Int[Tensor, " n"], noise: Float[Tensor, "n S"]
) -> Int[Tensor, "n S"]:
    """Return S distinct ads per slate, by inverse CDF on `noise` in (0, 1).

    `row` tells which row of `probability` each slate is drawn from: float64, of sum one and with
    at least S positive entries.
    """
    num_rows, num_ads = probability.shape
    cumulative = probability.cumsum(-1)
    cumulative = cumulative / cumulative[:, -1:]
    # One sorted line for all rows: row p holds the numbers in (2 p, 2 p + 1].
    line = (cumulative + 2.0 * torch.arange(num_rows)[:, None]).flatten()
    chosen = row.new_zeros(len(row), 0)
    for position in range(noise.shape[1]):
        taken = _at(probability, row, chosen)
        threshold = noise[:, position] * (1.0 - taken.sum(-1))
        # Skip the ads above: from the lowest id up, each one that lies below shifts the threshold.
        order = chosen.argsort(dim=-1)
        sorted_ads, sorted_mass = chosen.gather(1, order), taken.gather(1, order)
        for above in range(position):
            before = _at(cumulative, row, sorted_ads[:, above : above + 1])[:, 0]
            before = before - sorted_mass[:, above]
            threshold = threshold + sorted_mass[:, above] * (threshold >= before)
        found = torch.searchsorted(line, threshold + 2.0 * row, right=True)
        ad_id = (found - row * num_ads).clamp(0, num_ads - 1)
        chosen = torch.cat([chosen, ad_id[:, None]], dim=1)
    return chosen


def conditional_probability(
    probability: Float[Tensor, "P N"], row: Int[Tensor, " n"], ad_id: Int[Tensor, "n S"]
) -> Float[Tensor, "n S"]:
    """Return the probability of each position's ad given the ads above it.

    0 where the ads above leave nothing, so a slate that can't be drawn has probability 0.
    """
    chosen = _at(probability, row, ad_id)
    left = 1.0 - (chosen.cumsum(-1) - chosen)
    return torch.where(left > 0, chosen / left, 0.0).clamp(0.0, 1.0)


def marginal_probability(probability: Float[Tensor, "P N"], num_positions: int) -> Tensor:
    """Return the probability of every ad at every position, whatever stands above, [P, S, N].

    Raises:
        ValueError: More than three positions.
    """
    return reach_probability(probability, torch.ones_like(probability), num_positions)


def reach_probability(
    probability: Float[Tensor, "P N"], stay: Float[Tensor, "P N"], num_positions: int
) -> Float[Tensor, "P S N"]:
    """Return how probable it is that ad a stands at position s and that the user gets there.

    `stay` is the probability that a user who reached an ad goes on to the position below it. Rows
    of `probability`, float64, sum to one.

    Raises:
        ValueError: More than three positions.
    """
    if not 1 <= num_positions <= MAX_POSITIONS:
        raise ValueError(
            f"exact sums over slates take 1 to {MAX_POSITIONS} positions, got {num_positions}"
        )
    p = probability.double()
    chain = [p]
    if num_positions > 1:
        # weight of b at the top, once another ad is drawn below it
        top = _divide(p * stay, 1.0 - p)
        chain.append(p * (top.sum(-1, keepdim=True) - top))
    if num_positions > 2:
        # N^2 memory: one request at a time
        chain.append(torch.stack([_third(*rows) for rows in zip(p, stay, top, strict=True)]))
    return torch.stack(chain, dim=1)


def _at(table: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return table[row[i], column[i, s]] as [n, S]."""
    return table.flatten()[row[:, None] * table.shape[1] + column]


def _third(p: Tensor, stay: Tensor, top: Tensor) -> Tensor:
    """Return the third position's chain of one request, [N], from all ordered pairs above."""
    possible = p > 0
    chain = torch.zeros_like(p)
    p, stay, top = p[possible], stay[possible], top[possible]
    left = 1.0 - p[:, None] - p
    pair = _divide(top[:, None] * (p * stay), left).fill_diagonal_(0.0)
    chain[possible] = p * (pair.sum() - pair.sum(0) - pair.sum(1))
    return chain


def _divide(x: Tensor, y: Tensor) -> Tensor:
    """Return x / y, 0 where nothing is left to draw from (y = 0 but for rounding)."""
    return torch.where(y > 1e-12, x / y.clamp_min(1e-12), 0.0)
