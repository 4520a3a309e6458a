"""Draws of distinct legal paths: stochastic beam search (Kool, van Hoof and Welling 2019).

Dims: B requests, K candidates, W beams (1 at the root, then up to K + 1), L levels, V codes.
"""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from gpr_rl.checks import check_at_least, check_positive
from gpr_rl.decoding.beams import Beams
from gpr_rl.decoding.options import Options
from gpr_rl.decoding.trie import CodeTrie
from gpr_rl.random import Purpose, uniform
from gpr_rl.schema import Candidates

_ROOT_LEVEL = -1


@torch.no_grad()
def gumbel_paths(
    policy: Any,
    request: Any,
    trie: CodeTrie,
    num_candidates: int,
    seed: int,
    draw: int,
    eligible: Bool[Tensor, "B N"] | None = None,
    temperature: float = 1.0,
    *,
    signature: Int[Tensor, " B"] | None = None,
) -> Candidates:
    """Return K distinct paths per request, as if drawn one after the other without replacement.

    Every path's log-probability gets Gumbel noise and the K highest win, which is sampling without
    replacement in that order. The noise goes down the tree: a prefix has the maximum of its
    continuations' perturbed scores, so a beam of K + 1 finds the winners and, as the last of the
    beam, the threshold kappa that they passed. `log_weight` is log p - log P(score > kappa): the
    sum over candidates of exp(log_weight) f is an unbiased estimate of the mean of f under the
    policy.

    The noise is keyed by (seed, request id, draw, prefix): a request's paths don't depend on the
    batch, and a larger K only adds paths at the end. Arguments and errors as in `sample_paths`.

    Returns:
        Candidates [B, K] in the order of the draws, with `log_weight`. `log_prob` is of the
        distribution drawn from: this temperature, legal codes only. With at most K legal paths all
        are returned, kappa is -inf and the weight is p itself; the rest is padded with codes 0,
        log_prob and log_weight -inf, value 0, ad_id -1.
    """
    check_at_least(1, num_candidates=num_candidates)
    check_positive(temperature=temperature)
    beams = Beams(policy, request, trie, eligible, signature)
    beams.total = beams.total.double()
    keys = (request.request_id[:, None, None], request.request_id.new_tensor(draw))
    prefix = beams.codes.new_zeros(len(beams.codes), 1)  # the path so far as one number
    noise = uniform(seed, Purpose.GUMBEL, keys[0][..., 0], keys[1], prefix, prefix + _ROOT_LEVEL)
    score = _gumbel(noise)  # of the root: the maximum over all paths
    for level in range(beams.trie.num_levels):
        options = beams.options(renormalize=True, temperature=temperature)
        total = options.at(beams.total) + options.log_prob.double()
        number = options.at(prefix) * trie.num_codes + options.code
        own = keys if number.ndim == 3 else (keys[0][..., 0], keys[1])
        noise = uniform(seed, Purpose.GUMBEL, *own, number, number.new_tensor(level))
        perturbed = _below(total + _gumbel(noise), score, options)
        size = min(num_candidates + 1, perturbed[0].numel())
        score, child = perturbed.flatten(1).topk(size, dim=1)
        prefix = number.flatten(1).gather(1, child)
        beams.grow(child, options, total)
    valid = (score > -torch.inf) & (beams.legal.leaf_ad(beams.node) >= 0)
    threshold = score.new_full(score.shape[:1], -torch.inf)
    if score.shape[1] > num_candidates:
        threshold = torch.where(valid[:, num_candidates], score[:, num_candidates], threshold)
    log_inclusion = _log_inclusion(torch.where(valid, beams.total, 0.0) - threshold[:, None])
    log_weight = (beams.total - log_inclusion).to(beams.log_prob.dtype)
    order = torch.arange(min(num_candidates, score.shape[1]), device=score.device)
    return beams.candidates(
        order.expand(len(score), -1), valid, num_candidates, log_weight=log_weight
    )


def _gumbel(uniform_noise: Tensor) -> Tensor:
    return -(-uniform_noise.log()).log()


def _below(perturbed: Tensor, maximum: Tensor, options: Options) -> Tensor:
    """Return the options' Gumbel scores, given that a prefix's largest is its own [B, W]."""
    # -log(exp(-T) - exp(-Z) + exp(-G)) with T the parent's score, Z the children's largest and G
    # a child's, in the stable form of Kool et al., Appendix B.3; -inf stays -inf
    largest, maximum = options.at(options.amax(perturbed)), options.at(maximum)
    alive = (perturbed > -torch.inf) & (maximum > -torch.inf)
    top = torch.where(alive, maximum, 0.0)
    gap = torch.where(alive, perturbed - largest, 0.0)  # at most 0
    own = torch.where(alive, perturbed, 0.0)
    shift = top - own + torch.log1p(-gap.exp())  # -inf at the largest child itself
    score = top - shift.clamp_min(0.0) - torch.log1p((-shift.abs()).exp())
    return torch.where(alive, score, -torch.inf)


def _log_inclusion(excess: Tensor) -> Tensor:
    """Return log P(G > kappa) = log(1 - exp(-exp(excess))), excess = log p - kappa."""
    # far below the threshold the probability is exp(excess) itself, and may underflow
    exact = (-torch.expm1(-excess.clamp(max=50.0).exp())).log()
    return torch.where(excess < -30.0, excess, exact)
