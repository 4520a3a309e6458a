"""Independent draws of legal paths: the behaviour policy of on-policy RL (`docs/decisions.md`).

Dims: B requests, K candidates, L levels, V codes per level.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gpr_rl.checks import check_at_least, check_positive
from gpr_rl.decoding.beams import Beams
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
    *,
    signature: Int[Tensor, " B"] | None = None,
) -> Candidates:
    """Return K paths per request drawn independently, with replacement, from the policy.

    Each code is drawn from softmax(log pi / temperature) over the legal codes, by inverse CDF on
    one uniform number keyed by (seed, request id, draw, candidate, level). So a request's paths
    depend on neither the batch nor K: candidate k is the same path whatever K is.

    `seed` is the root of the experiment, `draw` says which draw for these requests it is, e.g. the
    training step. Requests have a `request_id`; the other arguments are those of `beam_search`.

    Returns:
        Candidates [B, K] with `log_prob` of the distribution drawn from. All are valid where a
        request has an eligible ad; without one: codes 0, log_prob -inf, value 0, ad_id -1.

    Raises:
        ValueError: `num_candidates` below 1, `temperature` not positive, or a policy that returns
            wrong shapes, NaN, +inf, or -inf at every legal code.
    """
    check_at_least(1, num_candidates=num_candidates)
    check_positive(temperature=temperature)
    beams = Beams(policy, request, trie, eligible, signature)
    shape, request_id = (len(beams.codes), num_candidates), request.request_id
    candidate = torch.arange(num_candidates, device=request_id.device)
    for level in range(beams.trie.num_levels):
        options = beams.options(renormalize=True, temperature=temperature)
        keys = request_id.new_tensor(draw), candidate, request_id.new_tensor(level)
        noise = uniform(seed, Purpose.SAMPLE_PATH, request_id[:, None], *keys)
        prefix = torch.arange(beams.total.shape[1], device=noise.device).expand(shape)
        code = _inverse_cdf(options.by_prefix(options.log_prob), noise)
        total = options.at(beams.total) + options.log_prob
        beams.grow(options.child(prefix, code), options, total)
    valid = beams.legal.leaf_ad(beams.node) >= 0
    return beams.candidates(candidate.expand(shape), valid, num_candidates)


def _inverse_cdf(log_prob: Float[Tensor, "B W V"], noise: Float[Tensor, "B K"]) -> Tensor:
    """Return codes int64 [B, K]: candidate k draws from row k, or all from row 0 where W = 1."""
    # the first code whose sum exceeds the threshold is legal: one of probability zero adds nothing
    cdf = log_prob.double().exp().cumsum(-1)
    total = cdf[..., -1:]
    threshold = noise.view(*log_prob.shape[:2], -1) * total
    threshold = threshold.minimum(total.nextafter(torch.zeros_like(total)))
    code = torch.searchsorted(cdf, threshold, right=True)
    return code.clamp_max(log_prob.shape[-1] - 1).view(noise.shape)
