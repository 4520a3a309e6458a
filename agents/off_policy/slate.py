"""Off-policy estimators for slates: S positions per request, a reward at each (after Open Bandit).

The value is the expected sum of rewards over the positions. The forms differ in what they believe
of the user, and so in how much of the slate enters the weight of a position's reward:

=======================  ===============================  ========================================
estimator                weight of position s             unbiased when the reward at s depends on
=======================  ===============================  ========================================
`slate_standard_ips`     the whole slate's probability    all of the slate
`slate_reward_ips`       that of positions 1..s           the ads up to s (cascade; RIPS)
`slate_independent_ips`  that of the ad at s (marginal)   the ad at s alone
=======================  ===============================  ========================================

Conditional probabilities, as SIPS, RIPS and Cascade-DR take them: entry s is the probability of
the ad at s given the ads above it, so their product is the slate's. All forms equal their
single-ad forms at S = 1. Intervals: see `estimators`; a request's slate is one row.

Dims: n logged slates, S positions, `*batch` leading dimensions.
"""

import torch
from jaxtyping import Float, Real
from torch import Tensor

from agents.off_policy.estimators import (
    Estimate,
    check_finite,
    clip_weight,
    direct_method,
    effective_sample_size,
    estimate_mean,
    importance_weights,
    make_estimate,
    ratio_error,
)


def slate_standard_ips(
    reward: Real[Tensor, "*#batch n S"],
    propensity: Float[Tensor, "*#batch n S"],
    target: Float[Tensor, "*#batch n S"],
    *,
    self_normalized: bool = False,
    max_weight: float | None = None,
) -> Estimate:
    """SIPS: every reward is weighted by the whole slate's ratio.

    Args:
        reward: Per position.
        propensity: Conditional probability of each position's ad under the logging policy.
        target: The same under the target policy.
        self_normalized: Divide by the mean weight (SNSIPS).
        max_weight: Clips the slate's weight; None: not.

    Raises:
        ValueError: See `estimators.ips`; rows are (slate, position).
    """
    weight = importance_weights(propensity, target).prod(-1, keepdim=True)
    return _weighted(reward, clip_weight(weight, max_weight), self_normalized)


def slate_reward_ips(
    reward: Real[Tensor, "*#batch n S"],
    propensity: Float[Tensor, "*#batch n S"],
    target: Float[Tensor, "*#batch n S"],
    *,
    self_normalized: bool = False,
    max_weight: float | None = None,
) -> Estimate:
    """RIPS: the reward at s is weighted by the ratio of positions 1..s (McInerney et al. 2020).

    With `self_normalized` every position has its own mean weight as divisor, as in the paper (Open
    Bandit's code takes one over all positions). Arguments and errors: see `slate_standard_ips`.
    """
    weight = importance_weights(propensity, target).cumprod(-1)
    return _weighted(reward, clip_weight(weight, max_weight), self_normalized)


def slate_independent_ips(
    reward: Real[Tensor, "*#batch n S"],
    marginal_propensity: Float[Tensor, "*#batch n S"],
    marginal_target: Float[Tensor, "*#batch n S"],
    *,
    self_normalized: bool = False,
    max_weight: float | None = None,
) -> Estimate:
    """IIPS: the reward at s is weighted by the ratio at s alone (Li et al. 2018).

    The marginal probabilities are those of this ad at this position, whatever stands above it.
    With `self_normalized` every position has its own divisor (SNIIPS). Other arguments and errors:
    see `slate_standard_ips`.
    """
    weight = importance_weights(marginal_propensity, marginal_target, max_weight)
    return _weighted(reward, weight, self_normalized)


def slate_direct_method(expected_prediction: Float[Tensor, "*batch n S"]) -> Estimate:
    """DM: the model's expectation of the whole slate's reward under the target policy.

    Of what `cascade_doubly_robust` takes, entry 0 is what counts: the expectation of the sum over
    all positions before any ad is known.
    """
    return direct_method(expected_prediction[..., 0])


def cascade_doubly_robust(
    reward: Real[Tensor, "*#batch n S"],
    propensity: Float[Tensor, "*#batch n S"],
    target: Float[Tensor, "*#batch n S"],
    prediction: Float[Tensor, "*#batch n S"],
    expected_prediction: Float[Tensor, "*#batch n S"],
    *,
    max_weight: float | None = None,
) -> Estimate:
    """Cascade-DR: sum over s of w_{1:s} (r_s - q_s) + w_{1:s-1} E_target[q_s].

    From Kiyohara et al. 2022, "Doubly robust off-policy evaluation for ranking policies under the
    cascade behavior model".
    q_s predicts the sum of rewards from position s on, given the ads of positions 1..s and the
    target policy below. Unbiased where RIPS is, whatever q, as long as the expectation is exact;
    with q = 0 it is RIPS. `prediction` is q_s at the logged ads, `expected_prediction` its mean
    over the ad at s under the target, given the logged ads of positions 1..s-1; `max_weight` clips
    the cumulative weights. Other arguments and errors: see `slate_standard_ips`.
    """
    weight = clip_weight(importance_weights(propensity, target).cumprod(-1), max_weight)
    before = torch.cat([torch.ones_like(weight[..., :1]), weight[..., :-1]], dim=-1)
    residual = check_finite(reward, "reward") - check_finite(prediction, "prediction")
    expected = check_finite(expected_prediction, "expected_prediction")
    term = weight * residual + before * expected
    return estimate_mean(term.sum(-1), *_least_known(weight.expand_as(term)))


def _weighted(
    reward: Real[Tensor, "*#batch n S"],
    weight: Float[Tensor, "*#batch n W"],
    self_normalized: bool,
) -> Estimate:
    """Return the estimate for weights per position (W = S) or per slate (W = 1)."""
    weight, reward = torch.broadcast_tensors(weight, check_finite(reward, "reward"))
    rows, supported = _least_known(weight)
    if not self_normalized:
        return estimate_mean((weight * reward).sum(-1), rows, supported)
    total = weight.sum(-2)
    divisor = torch.where(total > 0, total, 1.0)
    value = (weight * reward).sum(-2) / divisor  # [*batch, S]
    residual = (weight * (reward - value[..., None, :]) / divisor[..., None, :]).sum(-1)
    return make_estimate(value.sum(-1), ratio_error(residual), rows, supported)


def _least_known(weight: Float[Tensor, "*batch n S"]) -> tuple[Tensor, Tensor]:
    """Return the smallest effective sample size of a position, and if each has any weight."""
    return effective_sample_size(weight.transpose(-1, -2)).amin(-1), (weight > 0).any(-2).all(-1)
