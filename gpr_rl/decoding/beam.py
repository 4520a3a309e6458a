"""Value-guided beam search over the legal paths (GPR 2.3).

Dims: B requests, K candidates, W beams (1 at the root, then up to K), L levels, V codes per level.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gpr_rl.checks import check_at_least, check_positive
from gpr_rl.decoding.beams import Beams
from gpr_rl.decoding.options import Options
from gpr_rl.decoding.policy import pick
from gpr_rl.decoding.trie import CodeTrie
from gpr_rl.schema import Candidates

_GROUP = 16
"""Scores in a group of `_topk`, which leaves rows of fewer than 2 k groups whole."""


@dataclass(frozen=True, kw_only=True)
class WidthRule:
    """How many children each prefix of a beam may put forward, by its value (GPR 2.3)."""

    least: int
    most: int
    budget: float = 4.0
    """C, the children put forward in all, in units of the level's width; inf: no limit."""
    temperature: float = 1.0
    """tau, in standard deviations of the reward; inf: every prefix as many."""

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(
                f"least must be at least 1 and most at least that, got {self.least} and {self.most}"
            )
        check_at_least(1, budget=self.budget)
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    def allot(self, value: Float[Tensor, "B W"], alive: Tensor, width: int) -> Int[Tensor, "B W"]:
        """Return c_i of prefixes with these values, in standard deviations; 0 where not alive.

        clamp(C softmax(v / tau), least, most), rounded by largest remainders. Where `least` asks
        for more than C, the prefixes of least value give up what is above it.
        """
        if self.budget == math.inf:
            return alive * self.most
        room = int(self.budget * width)
        scaled = (value.double() / self.temperature).masked_fill(~alive, -torch.inf)
        share = scaled.softmax(-1).nan_to_num(0.0) * room
        count = share.floor()
        left = (room - count.sum(-1, keepdim=True)) * alive.any(-1, keepdim=True)
        rank = (
            (share - count).masked_fill(~alive, -1.0).argsort(dim=-1, descending=True, stable=True)
        )
        count = count.scatter_add(1, rank, (torch.arange(share.shape[1]) < left).to(count.dtype))
        count = count.clamp(self.least, self.most) * alive
        spare = (count - self.least).clamp_min(0.0)
        order = scaled.argsort(dim=-1, stable=True)
        before = spare.gather(1, order).cumsum(1) - spare.gather(1, order)
        over = (count.sum(-1, keepdim=True) - room).clamp_min(0.0)
        taken = (over - before).clamp_min(0.0).minimum(spare.gather(1, order))
        return (count - torch.zeros_like(count).scatter_(1, order, taken)).long()


@torch.no_grad()
def beam_search(
    policy: Any,
    request: Any,
    trie: CodeTrie,
    num_candidates: int = 40,
    eligible: Bool[Tensor, "B N"] | None = None,
    value_weight: float = 0.0,
    *,
    signature: Int[Tensor, " B"] | None = None,
    widths: Sequence[int] | None = None,
    width_range: tuple[int, int] | WidthRule | None = None,
    renormalize: bool = False,
    reward_scale: float = 1.0,
    num_valued: int | None = None,
) -> Candidates:
    """Return the K legal paths that a beam scores highest, best first.

    A path scores sum_l log pi(z_l | s, z_{1:l-1}) + value_weight V(s, z_{1:l}) / reward_scale,
    with the value of the newest prefix only. Illegal codes leave before the top-k. With a value
    weight, all legal first codes are valued, then each beam's likeliest children, as many as the
    level is wide, and compared across beams; at the last level the policy's `final_value` stands in
    for V, and without one nothing does.
    Equal scores go to the path that is smaller in lexicographic order, exactly.

    With value weight 0 and widths of at least the number of legal paths this is exhaustive. No
    request's result depends on the others. A legal path of probability zero counts as illegal.

    Args:
        policy: A `gpr_rl.decoding.policy.Policy`.
        request: What its `encode` takes for B requests.
        trie: The catalogue; the search sees the version of when it begins.
        num_candidates: K.
        eligible: The ads each request may show; None: all.
        value_weight: Nats per unit of scaled reward; at 0 the value is not evaluated.
        signature: Which row of `CodeTrie.signatures` a request may show, in place of `eligible`.
        widths: Beams kept at each of the L levels (GR4AD), the last at least K; None: K at all.
        width_range: At least and at most so many children may one prefix put forward, by the
            softmax of the prefixes' values; what else `WidthRule` says. The root is not limited.
        renormalize: Let probabilities sum to one over the legal codes of each prefix, as in
            `sample_paths`, instead of taking the policy's own.
        reward_scale: The reward's standard deviation.
        num_valued: How many of a beam's likeliest children are valued instead, the root's
            included; with V all are.

    Returns:
        Candidates [B, K]. Where a request has fewer than K legal paths: codes 0, log_prob -inf,
        value 0, ad_id -1.

    Raises:
        ValueError: `num_candidates` below 1, wrong `widths`, `num_valued` below a width,
            `reward_scale` not positive, or a policy that returns wrong shapes, NaN or +inf.
    """
    kept = _checked_widths(widths, num_candidates, trie.num_levels)
    if num_valued is not None and num_valued < max(kept):
        name = "num_candidates" if widths is None else "the widest level"
        raise ValueError(f"num_valued must be at least {name} = {max(kept)}, got {num_valued}")
    check_positive(reward_scale=reward_scale)
    rule = (
        WidthRule(least=width_range[0], most=width_range[1])
        if isinstance(width_range, tuple)
        else width_range
    )
    beams = Beams(policy, request, trie, eligible, signature)
    states, score = beams.states, beams.total
    for level, width in enumerate(kept):
        options = beams.options(renormalize=renormalize)
        total = options.at(beams.total) + options.log_prob
        if rule is not None and level:
            alive = beams.total > -torch.inf
            count = rule.allot(states.value / reward_scale, alive, width)
            total = options.of_prefixes(_put_forward(options.by_prefix(total), count))
        if value_weight and (not beams.is_last or hasattr(policy, "final_value")):
            valued = num_valued or (width if level else trie.num_codes)
            child, parent, prefix = _likely_children(total, options, beams.codes, valued)
            value = states.value
            if beams.is_last:
                guide = policy.final_value(states.context, prefix)
            else:
                states.extend(prefix, parent)
                guide = states.value
            total_of_child = total.flatten(1).gather(1, child)
            score = _guided(total_of_child, guide * (value_weight / reward_scale))
            best = _top(score, width)
            score = score.gather(1, best)
            if not beams.is_last:
                states.keep(best)
            beams.append(child.gather(1, best), options, total, value)
        else:
            beams.grow(_top(total.flatten(1), width), options, total)
            score = beams.total
    best = score.argsort(dim=1, descending=True, stable=True)[:, :num_candidates]
    return beams.candidates(best, beams.total > -torch.inf, num_candidates)


def _checked_widths(
    widths: Sequence[int] | None, num_candidates: int, num_levels: int
) -> tuple[int, ...]:
    """Return the width of every level."""
    check_at_least(1, num_candidates=num_candidates)
    if widths is None:
        return (num_candidates,) * num_levels
    if len(widths) != num_levels or min(widths) < 1 or widths[-1] < num_candidates:
        raise ValueError(
            f"widths must be {num_levels} numbers of at least 1, the last at least num_candidates "
            f"= {num_candidates}, got {tuple(widths)}"
        )
    return tuple(widths)


def _put_forward(
    total: Float[Tensor, "B W C"], count: Int[Tensor, "B W"]
) -> Float[Tensor, "B W C"]:
    """Return -inf at all but each prefix's best `count` options; ties go to the lower code."""
    most = min(max(1, int(count.max())), total.shape[-1])
    best = total.topk(most, dim=-1).values
    last = best.gather(-1, (count[..., None] - 1).clamp(0, most - 1))
    above, tied = total > last, total == last
    room = count[..., None] - above.sum(-1, keepdim=True)
    chosen = above | (tied & (tied.cumsum(-1, dtype=torch.int32) <= room))
    return total.where(chosen & (count > 0)[..., None], -torch.inf)


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


def _likely_children(
    total: Tensor, options: Options, codes: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return each beam's k likeliest legal children: places, parents and prefixes."""
    by_prefix = options.by_prefix(total)
    option = _top(by_prefix.flatten(0, 1), k).view(*by_prefix.shape[:2], -1)
    beam = torch.arange(by_prefix.shape[1], device=option.device)
    child = options.child(beam[:, None].expand(option.shape), option).flatten(1)
    is_legal = total.flatten(1).gather(1, child) > -torch.inf
    num_legal = max(1, int(is_legal.sum(1).max()))
    kept = _top(is_legal.to(total.dtype), num_legal)
    child = child.gather(1, kept)
    parent, code, _ = options.pick(child)
    return child, parent, torch.cat([pick(codes, parent), code[..., None]], dim=-1)


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
