"""Value-guided beam search over the legal paths (GPR 2.3).

Dims: B requests, K candidates, W beams (1 at the root, then up to K), L levels, V codes per level.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gpr_rl.checks import check_at_least, check_positive
from gpr_rl.decoding.beams import Beams
from gpr_rl.decoding.policy import pick
from gpr_rl.decoding.trie import CodeTrie
from gpr_rl.schema import Candidates

_GROUP = 16
"""Scores in a group of `_topk`, which leaves rows of fewer than 2 k groups whole."""


@torch.no_grad()
def beam_search(
    policy: Any,
    request: Any,
    trie: CodeTrie,
    num_candidates: int = 40,
    eligible: Bool[Tensor, "B N"] | None = None,
    value_weight: float = 0.0,
    *,
    renormalize: bool = False,
    reward_scale: float = 1.0,
    num_valued: int | None = None,
) -> Candidates:
    """Return the K legal paths that a beam of width K scores highest, best first.

    A path scores sum_l log pi(z_l | s, z_{1:l-1}) + value_weight V(s, z_{1:l}) / reward_scale,
    with the value of the newest prefix only. Illegal codes leave before the top-k. With a value
    weight, all legal first codes are valued, then each beam's K likeliest children, and compared
    across beams; at the last level the policy's `final_value` stands in for V, and without one
    nothing does.
    Equal scores go to the path that is smaller in lexicographic order, exactly.

    With value weight 0 and K at least the number of legal paths this is exhaustive. No request's
    result depends on the others. A legal path of probability zero counts as illegal.

    `policy` is a `gpr_rl.decoding.policy.Policy`, `request` what its `encode` takes for B requests,
    `eligible` the ads each may show (None: all). `value_weight` is in nats per unit of scaled
    reward; at 0 the value is not evaluated. `renormalize` lets probabilities sum to one over the
    legal codes of each prefix, as in `sample_paths`, instead of taking the policy's own.
    `num_valued` is how many of a beam's likeliest children are valued instead, the root's included;
    with V all are.

    Returns:
        Candidates [B, K]. Where a request has fewer than K legal paths: codes 0, log_prob -inf,
        value 0, ad_id -1.

    Raises:
        ValueError: `num_candidates` below 1, `num_valued` below that, `reward_scale` not
            positive, or a policy that returns wrong shapes, NaN or +inf.
    """
    check_at_least(1, num_candidates=num_candidates)
    at_root, below = (trie.num_codes, num_candidates) if num_valued is None else (num_valued,) * 2
    if below < num_candidates:
        raise ValueError(
            f"num_valued must be at least num_candidates = {num_candidates}, got {num_valued}"
        )
    check_positive(reward_scale=reward_scale)
    beams = Beams(policy, request, trie, eligible)
    states, score = beams.states, beams.total
    for level in range(trie.num_levels):
        log_prob = beams.next_log_prob(renormalize=renormalize)
        total = beams.total[..., None] + log_prob  # [B, W, V]
        if value_weight and (not beams.is_last or hasattr(policy, "final_value")):
            child, parent, prefix = _likely_children(
                total, beams.codes, below if level else at_root
            )
            value = states.value
            if beams.is_last:
                guide = policy.final_value(states.context, prefix)
            else:
                states.extend(prefix, parent)
                guide = states.value
            total_of_child = total.flatten(1).gather(1, child)
            score = _guided(total_of_child, guide * (value_weight / reward_scale))
            kept = _top(score, num_candidates)
            score = score.gather(1, kept)
            if not beams.is_last:
                states.keep(kept)
            beams.append(child.gather(1, kept), log_prob, total, value)
        else:
            beams.grow(_top(total.flatten(1), num_candidates), log_prob, total)
            score = beams.total
    best = score.argsort(dim=1, descending=True, stable=True)
    return beams.candidates(best, beams.total > -torch.inf, num_candidates)


def _top(score: Float[Tensor, "*r M"], k: int) -> Int[Tensor, "*r k"]:
    """Return the indices of the k highest scores, ascending; ties go to the lower index."""
    # `torch.topk` breaks ties as it likes; where the next value is lower than the k-th it had no
    # choice, else the first of those equal to the k-th fill up: faster than a stable sort
    if k >= score.shape[-1]:
        return torch.arange(score.shape[-1], device=score.device).expand(score.shape)
    best, index = _topk(score, k + 1)
    threshold = best[..., k - 1 : k]
    if (threshold > best[..., k:]).all():
        return index[..., :k].sort(-1).values
    above, tied = score > threshold, score == threshold
    room = k - above.sum(-1, keepdim=True, dtype=torch.int32)
    chosen = above | (tied & (tied.cumsum(-1, dtype=torch.int32) <= room))
    return chosen.nonzero()[:, -1].view(*score.shape[:-1], k)


def _topk(score: Float[Tensor, "*r M"], k: int) -> tuple[Tensor, Tensor]:
    """Return `torch.topk` of long rows, sooner: the k best lie in the k best strided groups."""
    num_groups = score.shape[-1] // _GROUP
    if num_groups < 2 * k or score.shape[-1] % _GROUP:
        return score.topk(k)
    groups = score.unflatten(-1, (_GROUP, num_groups))
    chosen = groups.amax(-2).topk(k, sorted=False).indices
    kept = groups.gather(-1, chosen[..., None, :].expand(*chosen.shape[:-1], _GROUP, k))
    best, place = kept.flatten(-2).topk(k)
    return best, chosen.gather(-1, place % k) + place // k * num_groups


def _likely_children(total: Tensor, codes: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return each beam's k likeliest legal children: index into [B, W V], parent and prefix."""
    num_codes = total.shape[-1]
    code = _top(total.flatten(0, 1), k).view(*total.shape[:2], -1)
    child = code + num_codes * torch.arange(total.shape[1], device=code.device)[:, None]
    child = child.flatten(1)
    is_legal = total.flatten(1).gather(1, child) > -torch.inf
    num_legal = max(1, int(is_legal.sum(1).max()))
    child = child.gather(1, _top(is_legal.to(total.dtype), num_legal))
    parent = child // num_codes
    prefix = torch.cat([pick(codes, parent), (child % num_codes)[..., None]], dim=-1)
    return child, parent, prefix


def _guided(total: Float[Tensor, "B M"], bonus: Float[Tensor, "B M"]) -> Float[Tensor, "B M"]:
    """Return total + bonus, -inf where the child is illegal, whatever its value."""
    is_legal = total > -torch.inf
    score = (total + bonus.to(total.dtype)).where(is_legal, -torch.inf)
    if not score[is_legal].isfinite().all():
        request, child = (is_legal & ~score.isfinite()).nonzero()[0].tolist()
        raise ValueError(
            f"the policy's value of a legal prefix of request {request} is not finite:"
            f" weighted {float(bonus[request, child])}"
        )
    return score


def greedy(
    policy: Any,
    request: Any,
    trie: CodeTrie,
    eligible: Bool[Tensor, "B N"] | None = None,
) -> Candidates:
    """Return one path per request, K = 1: the likeliest legal code at every level.

    Its log-probabilities are of the distribution over legal codes, as in `sample_paths`.
    """
    return beam_search(policy, request, trie, 1, eligible, renormalize=True)
