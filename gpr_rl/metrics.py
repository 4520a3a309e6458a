"""Ranking metrics of a scored list (GPR Tab. 2 and 3).

Dims: B requests, K list entries.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gpr_rl.checks import check_at_least


def ndcg(
    score: Float[Tensor, "B K"],
    gain: Float[Tensor, "B K"],
    valid: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, " B"]:
    """Return NDCG of each list ranked by `score`: discount log2(1 + rank), gain as it is.

    The ideal is the same list by gain. Equal scores keep the list's order. Entries that are not
    valid are left out. In [0, 1]; NaN for a list whose gains, for instance eCPM, are all 0.

    Raises:
        ValueError: Shapes differ, or a valid gain is negative.
    """
    gain, score = _prepare(score, gain, valid)
    rank = torch.arange(score.shape[1], device=score.device)
    discount = 1.0 / torch.log2(rank.to(gain.dtype) + 2.0)
    order = score.argsort(dim=1, descending=True, stable=True)
    dcg = (gain.gather(1, order) * discount).sum(1)
    ideal = (gain.sort(dim=1, descending=True).values * discount).sum(1)
    return torch.where(ideal > 0, dcg / ideal, torch.nan)


def ordered_pair_ratio(
    score: Float[Tensor, "B K"],
    gain: Float[Tensor, "B K"],
    valid: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, " B"]:
    """Return the share of pairs with different gains that `score` orders correctly (OPR).

    Equal scores count half. In [0, 1]; NaN for a list without a pair of different gains. Raises as
    `ndcg` does.
    """
    exists = torch.ones_like(score, dtype=torch.bool) if valid is None else valid
    gain, score = _prepare(score, gain, valid)
    better = gain[:, :, None] > gain[:, None, :]
    better &= exists[:, :, None] & exists[:, None, :]
    difference = torch.sign(score[:, :, None] - score[:, None, :]).nan_to_num(0.0)
    right = ((difference + 1.0) / 2.0 * better).sum((1, 2))
    pairs = better.sum((1, 2))
    return torch.where(pairs > 0, right / pairs, torch.nan)


def _prepare(score: Tensor, gain: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    if score.shape != gain.shape or score.ndim != 2:
        raise ValueError(
            f"score and gain must both be [B, K], got {list(score.shape)} and {list(gain.shape)}"
        )
    if valid is not None:
        score = score.masked_fill(~valid, -torch.inf)
        gain = gain.masked_fill(~valid, 0.0)
    if (gain < 0).any():
        raise ValueError(f"gain must be at least 0, got {gain.min().item()}")
    return gain, score


def hit_rate(ranked: Int[Tensor, "B K"], target: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Return 1 where the target is in the list, else 0: HitR@K of lists of length K."""
    return (ranked == target[:, None]).any(1).float()


def recall_ndcg(
    ranked: Int[Tensor, "B K"], target: Int[Tensor, " B"], cutoff: int
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Return Recall@cutoff and NDCG@cutoff with one relevant entry, `target`, per list.

    The relevant entry at rank r (from 1) gives NDCG 1 / log2(r + 1), and 0 beyond the cutoff.
    Lists are best first, each entry at most once; fillers must differ from every target.

    Raises:
        ValueError: The cutoff is below 1.
    """
    check_at_least(1, cutoff=cutoff)
    hit = ranked[:, :cutoff] == target[:, None]
    rank = torch.arange(hit.shape[1], device=ranked.device) + 1
    gain = 1.0 / torch.log2(rank + 1.0)
    return hit.any(1).float(), (hit * gain).sum(1)
