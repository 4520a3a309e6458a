"""Draws of distinct legal paths: stochastic beam search (Kool, van Hoof and Welling 2019).

Dims: B requests, K candidates, W beams (1 at the root, then up to K + 1), L levels, V codes per
level.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from gpr_rl.decoding.policy import PathStates, count_requests, legal_log_prob, pick
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
) -> Candidates:
    """Return K distinct paths per request, as if drawn one after the other without replacement.

    Every path's log-probability gets Gumbel noise and the K highest win, which is sampling without
    replacement in that order. The noise goes down the tree: a prefix has the maximum of its
    continuations' perturbed scores, so a beam of K + 1 finds the winners and, as the last of the
    beam, the threshold kappa that they passed. `log_weight` is log p - log P(score > kappa): the
    sum over candidates of exp(log_weight) f is an unbiased estimate of the mean of f under the
    policy.

    The noise is keyed by (seed, request id, draw, prefix): a request's paths don't depend on the
    batch, and a larger K only adds paths at the end.

    Args:
        policy: See `gpr_rl.decoding.policy.Policy`.
        request: B requests, with `request_id`.
        trie: The catalogue.
        num_candidates: K.
        seed: Root seed of the experiment.
        draw: Which draw for these requests, e.g. the training step.
        eligible: The ads each request may show; None: all.
        temperature: Above 1 flatter, below 1 sharper.

    Returns:
        Candidates [B, K] in the order of the draws, with `log_weight`. `log_prob` is of the
        distribution drawn from: this temperature, legal codes only. With at most K legal paths all
        are returned, kappa is -inf and the weight is p itself; the rest is padded with codes 0,
        log_prob and log_weight -inf, value 0, ad_id -1.

    Raises:
        ValueError: `num_candidates` below 1, `temperature` not positive, or a policy that returns
            wrong shapes, NaN, +inf, or -inf at every legal code.
    """
    if num_candidates < 1:
        raise ValueError(f"num_candidates must be at least 1, got {num_candidates}")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    legal = trie.restrict(eligible)
    num_requests = count_requests(request, eligible)
    empty = trie.codes.new_zeros(num_requests, 1, 0)
    states = PathStates(policy, request, empty, trie.num_codes)
    keys = (request.request_id[:, None, None], request.request_id.new_tensor(draw))
    codes, node = empty, trie.root(num_requests, 1)
    prefix = empty.new_zeros(num_requests, 1)  # the path so far as one number
    total = torch.zeros(num_requests, 1, dtype=torch.float64, device=codes.device)
    noise = uniform(seed, Purpose.GUMBEL, keys[0][..., 0], keys[1], prefix, prefix + _ROOT_LEVEL)
    score = _gumbel(noise)  # of the root: the maximum over all paths
    log_probs = states.log_prob.new_zeros(num_requests, 1, 0)
    values = log_probs
    for level in range(trie.num_levels):
        log_prob = legal_log_prob(
            states.log_prob / temperature, legal.child_mask(level, node), renormalize=True
        )
        child_total = total[..., None] + log_prob.double()  # [B, W, V]
        number = prefix[..., None] * trie.num_codes + torch.arange(
            trie.num_codes, device=codes.device
        )
        noise = uniform(seed, Purpose.GUMBEL, *keys, number, number.new_tensor(level))
        perturbed = _below(child_total + _gumbel(noise), score)
        size = min(num_candidates + 1, perturbed[0].numel())
        score, child = perturbed.flatten(1).topk(size, dim=1)
        parent, code = child // trie.num_codes, child % trie.num_codes

        def append(history: Tensor, new: Tensor, parent: Tensor = parent) -> Tensor:
            return torch.cat([pick(history, parent), new.to(history.dtype)[..., None]], dim=-1)

        log_probs = append(log_probs, log_prob.flatten(1).gather(1, child))
        values = append(values, states.value.gather(1, parent))
        codes = append(codes, code)
        total = child_total.flatten(1).gather(1, child)
        prefix = number.flatten(1).gather(1, child)
        node = trie.child(level, node.gather(1, parent), code)
        if level < trie.num_levels - 1:
            states.extend(codes, parent)
    return _finish(codes, log_probs, values, total, score, legal.leaf_ad(node), num_candidates)


def _gumbel(uniform_noise: Tensor) -> Tensor:
    return -(-uniform_noise.log()).log()


def _below(
    perturbed: Float[Tensor, "B W V"], maximum: Float[Tensor, "B W"]
) -> Float[Tensor, "B W V"]:
    """Return Gumbel scores of the children given that their largest is the parent's.

    -log(exp(-T) - exp(-Z) + exp(-G)) with T the parent's score, Z the children's largest and G a
    child's, in the numerically stable form of Kool et al., Appendix B.3. -inf stays -inf.
    """
    largest = perturbed.amax(-1, keepdim=True)
    alive = (perturbed > -torch.inf) & (maximum > -torch.inf)[..., None]
    top = torch.where(alive, maximum[..., None], 0.0)
    gap = torch.where(alive, perturbed - largest, 0.0)  # at most 0
    own = torch.where(alive, perturbed, 0.0)
    shift = top - own + torch.log1p(-gap.exp())  # -inf at the largest child itself
    score = top - shift.clamp_min(0.0) - torch.log1p((-shift.abs()).exp())
    return torch.where(alive, score, -torch.inf)


def _finish(
    codes: Tensor,
    log_probs: Tensor,
    values: Tensor,
    total: Tensor,
    score: Tensor,
    ad_id: Tensor,
    num_candidates: int,
) -> Candidates:
    """Take the first K, weigh them by the threshold and pad."""
    valid = (score > -torch.inf) & (ad_id >= 0)
    threshold = score.new_full(score.shape[:1], -torch.inf)
    if score.shape[1] > num_candidates:
        threshold = torch.where(valid[:, num_candidates], score[:, num_candidates], threshold)
    # log P(G > kappa) = log(1 - exp(-exp(log p - kappa))); 0 where nothing was left out.
    excess = torch.where(valid, total, 0.0) - threshold[:, None]
    log_inclusion = (-torch.expm1(-excess.clamp(max=50.0).exp())).log()
    # Far below the threshold the probability is exp(excess) itself, and may underflow.
    log_inclusion = torch.where(excess < -30.0, excess, log_inclusion)
    kept = slice(0, num_candidates)
    missing = num_candidates - valid[:, kept].shape[1]

    def field(x: Tensor, blank: float | int) -> Tensor:
        x = x[:, kept]
        mask = valid[:, kept].view(*valid[:, kept].shape, *[1] * (x.ndim - 2))
        return pad(x.where(mask, blank), (0, 0) * (x.ndim - 2) + (0, missing), value=blank)

    return Candidates(
        codes=field(codes, 0),
        log_prob=field(log_probs, -torch.inf),
        value=field(values, 0.0),
        ad_id=field(ad_id, -1),
        valid=pad(valid[:, kept], (0, missing)),
        log_weight=field((total - log_inclusion).to(log_probs.dtype), -torch.inf),
        batch_size=[len(valid)],
    )
