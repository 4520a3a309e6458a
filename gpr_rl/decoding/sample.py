"""Independent draws of legal paths: the behaviour policy of on-policy RL (`docs/decisions.md`).

Dims: B requests, K candidates, L levels, V codes per level.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gpr_rl.decoding.policy import PathStates, count_requests, legal_log_prob
from gpr_rl.decoding.trie import CodeTrie
from gpr_rl.random import Purpose, uniform
from gpr_rl.schema import Candidates


@torch.no_grad()
def sample_paths(
    policy: Any,
    request: Any,
    trie: CodeTrie,
    num_candidates: int,
    seed: int,
    draw: int,
    eligible: Bool[Tensor, "B N"] | None = None,
    temperature: float = 1.0,
) -> Candidates:
    """Return K paths per request drawn independently, with replacement, from the policy.

    Each code is drawn from softmax(log pi / temperature) over the legal codes, by inverse CDF on
    one uniform number keyed by (seed, request id, draw, candidate, level). So a request's paths
    depend on neither the batch nor K: candidate k is the same path whatever K is.

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
        Candidates [B, K]. `log_prob` is of the distribution drawn from: this temperature, legal
        codes only. Every candidate is valid where a request has an eligible ad; without one:
        codes 0, log_prob -inf, value 0, ad_id -1.

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
    shape = (num_requests, num_candidates)
    states = PathStates(policy, request, trie.codes.new_zeros(num_requests, 1, 0), trie.num_codes)
    node = trie.root(num_requests, 1)
    codes = trie.codes.new_zeros(*shape, 0)
    log_probs, values = [], []
    for level in range(trie.num_levels):
        legal_mask = legal.child_mask(level, node)
        log_prob = legal_log_prob(states.log_prob / temperature, legal_mask, renormalize=True)
        noise = _noise(request.request_id, num_candidates, seed, draw, level)
        code = _inverse_cdf(log_prob, noise)
        values.append(states.value.expand(shape))
        log_probs.append(log_prob.expand(*shape, -1).gather(2, code[..., None])[..., 0])
        codes = torch.cat([codes, code[..., None]], dim=-1)
        node = trie.child(level, node.expand(shape), code)
        if level < trie.num_levels - 1:
            parent = torch.arange(states.value.shape[1], device=code.device).expand(shape)
            states.extend(codes, parent)
    ad_id = legal.leaf_ad(node)
    valid = ad_id >= 0
    return Candidates(
        codes=codes.where(valid[..., None], 0),
        log_prob=torch.stack(log_probs, dim=-1).where(valid[..., None], -torch.inf),
        value=torch.stack(values, dim=-1).where(valid[..., None], 0.0),
        ad_id=ad_id,
        valid=valid,
        batch_size=[num_requests],
    )


def _noise(
    request_id: Tensor, num_candidates: int, seed: int, draw: int, level: int
) -> Float[Tensor, "B K"]:
    candidate = torch.arange(num_candidates, device=request_id.device)
    keys = request_id.new_tensor(draw), candidate, request_id.new_tensor(level)
    return uniform(seed, Purpose.SAMPLE_PATH, request_id[:, None], *keys)


def _inverse_cdf(log_prob: Float[Tensor, "B W V"], noise: Float[Tensor, "B K"]) -> Tensor:
    """Return codes int64 [B, K]: candidate k draws from row k, or all from row 0 where W = 1.

    A code of probability zero adds nothing to the sum, so the first code whose sum exceeds the
    threshold is a legal one. Rows without any give V - 1.
    """
    cdf = log_prob.double().exp().cumsum(-1)
    total = cdf[..., -1:]
    threshold = noise.view(*log_prob.shape[:2], -1) * total
    threshold = threshold.minimum(total.nextafter(torch.zeros_like(total)))
    code = torch.searchsorted(cdf, threshold, right=True)
    return code.clamp_max(log_prob.shape[-1] - 1).view(noise.shape)
