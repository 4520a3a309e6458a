"""What another policy would have earned, from a log with propensities: IPS, SNIPS, DM, DR.

Pure functions of float64 tensors, batched over leading dimensions (target policies, replications):
rewards [R, n] with target probabilities [P, R, n] give P x R estimates in one call. What happened
(reward, propensity) and what the target would do (target) belong to the ad that was shown.

Intervals are normal, value +- 1.96 standard errors, with the standard error of the mean of the
row terms (delta method for the self-normalised forms). They count the variance of the log only:
neither the bias of clipping nor that of a reward model. With few effective rows the terms are
heavy-tailed and the intervals cover less than their nominal 95 %; `effective_sample_size` tells.

Dims: n logged rows; `*batch` any leading dimensions, broadcast against each other.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor

Z_95 = 1.959963984540054
"""97.5 % quantile of the normal distribution."""


@dataclass(frozen=True)
class Estimate:
    """An estimated value per row with its interval; every field is a tensor of shape [*batch].

    Without support (no logged row has a chance under the target) a weighted estimator knows
    nothing: `supported` is False, the standard error and the interval are infinite, the effective
    sample size 0, and the value is what is left without weights (0, or the model's for DR).
    """

    value: Float[Tensor, "*batch"]
    std_error: Float[Tensor, "*batch"]
    """Infinite for a single row, and without support."""
    low: Float[Tensor, "*batch"]
    """Lower end of the nominal 95 % interval."""
    high: Float[Tensor, "*batch"]
    effective_sample_size: Float[Tensor, "*batch"]
    """Kish's (sum w)^2 / sum w^2, in [0, n]; n for the direct method."""
    supported: Bool[Tensor, "*batch"]


class PropensityError(ValueError):
    """A probability that can't be one; the message names the row."""


def importance_weights(
    propensity: Float[Tensor, "*#batch n"],
    target: Float[Tensor, "*#batch n"],
    max_weight: float | None = None,
) -> Float[Tensor, "*batch n"]:
    """Return target / propensity, clipped at `max_weight` if given.

    Raises:
        PropensityError: A propensity outside (0, 1] or a target probability outside [0, 1].
        ValueError: `max_weight` is not positive.
    """
    propensity = _probability(propensity, "propensity", "(0, 1]")
    target = _probability(target, "target probability", "[0, 1]")
    return clip_weight(target / propensity, max_weight)


def clip_weight(weight: Tensor, max_weight: float | None) -> Tensor:
    """Return weights that are at most `max_weight`, a positive number; None: as they are."""
    if max_weight is None:
        return weight
    if not max_weight > 0:
        raise ValueError(f"max_weight must be positive, got {max_weight}")
    return weight.clamp_max(max_weight)


def _probability(value: Tensor, name: str, interval: str) -> Tensor:
    value = value.double()
    least = value > 0 if interval.startswith("(") else value >= 0
    refuse(~(least & (value <= 1 + 1e-6)), value, name, f"lie in {interval}", PropensityError)
    return value


def refuse(
    bad: Tensor, value: Tensor, name: str, rule: str, error: type[ValueError] = ValueError
) -> None:
    """Raise an error that names the first row where `bad`."""
    if bad.any():
        index = tuple(bad.nonzero()[0].tolist())
        row = index[0] if len(index) == 1 else index
        raise error(f"{name} of row {row} must {rule}, got {value[index].item()}")


def check_finite(value: Tensor, name: str) -> Tensor:
    """Return `value` in float64; ValueError if it has no rows, or names the first not finite."""
    value = value.double()
    if 0 in value.shape:
        raise ValueError(f"{name} must have at least one row, got shape {list(value.shape)}")
    refuse(~value.isfinite(), value, name, "be finite")
    return value


def effective_sample_size(weight: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Return (sum w)^2 / sum w^2, 0 where all weights are 0."""
    square = weight.square().sum(-1)
    return torch.where(square > 0, weight.sum(-1).square() / square, 0.0)


def estimate_mean(
    term: Float[Tensor, "*batch n"],
    effective_rows: Float[Tensor, "*batch"],
    supported: Bool[Tensor, "*batch"],
) -> Estimate:
    """Return the mean of row terms with its normal interval."""
    num_rows = term.shape[-1]
    spread = term.std(-1) if num_rows > 1 else term.new_full(term.shape[:-1], math.inf)
    return make_estimate(term.mean(-1), spread / math.sqrt(num_rows), effective_rows, supported)


def make_estimate(
    value: Float[Tensor, "*batch"],
    std_error: Float[Tensor, "*batch"],
    effective_rows: Float[Tensor, "*batch"],
    supported: Bool[Tensor, "*batch"],
) -> Estimate:
    """Return an estimate with its normal interval, infinite where it has no support."""
    std_error = std_error.where(supported, math.inf)
    half = Z_95 * std_error
    return Estimate(value, std_error, value - half, value + half, effective_rows, supported)


def ips(
    reward: Real[Tensor, "*#batch n"],
    propensity: Float[Tensor, "*#batch n"],
    target: Float[Tensor, "*#batch n"],
    *,
    max_weight: float | None = None,
) -> Estimate:
    """Inverse propensity scoring: mean of w r, w = target / propensity (Horvitz and Thompson 1952).

    Unbiased wherever every ad that the target may show has a positive propensity; clipping at
    `max_weight` trades that for less variance.

    Args:
        reward: Of each logged row.
        propensity: Probability of the logged ad under the policy that logged it, in (0, 1].
        target: Probability of the logged ad under the target policy, in [0, 1].
        max_weight: Clips the weights; None: not.

    Raises:
        ValueError: Probabilities out of range (`PropensityError`), non-finite rewards, no rows.
    """
    weight = importance_weights(propensity, target, max_weight)
    return _weighted_mean(weight * check_finite(reward, "reward"), weight)


def _weighted_mean(term: Tensor, weight: Tensor) -> Estimate:
    weight = weight.expand_as(term)
    return estimate_mean(term, effective_sample_size(weight), (weight > 0).any(-1))


def snips(
    reward: Real[Tensor, "*#batch n"],
    propensity: Float[Tensor, "*#batch n"],
    target: Float[Tensor, "*#batch n"],
    *,
    max_weight: float | None = None,
) -> Estimate:
    """Self-normalised IPS: sum w r / sum w (Swaminathan and Joachims 2015).

    Biased by O(1/n), bounded by the rewards, and unchanged by adding a constant to all rewards
    (up to that constant). Arguments and errors: see `ips`.
    """
    weight = importance_weights(propensity, target, max_weight)
    reward = check_finite(reward, "reward")
    weight, reward = torch.broadcast_tensors(weight, reward)
    supported = (weight > 0).any(-1)
    total = weight.sum(-1)
    divisor = torch.where(supported, total, 1.0)
    value = (weight * reward).sum(-1) / divisor
    residual = weight * (reward - value[..., None])
    error = ratio_error(residual) / divisor
    return make_estimate(value, error, effective_sample_size(weight), supported)


def ratio_error(residual: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Return a ratio's standard error times its divisor (delta method); infinite for one row."""
    num_rows = residual.shape[-1]
    if num_rows == 1:
        return residual.new_full(residual.shape[:-1], math.inf)
    return residual.square().sum(-1).sqrt() * math.sqrt(num_rows / (num_rows - 1))


def direct_method(expected_prediction: Float[Tensor, "*batch n"]) -> Estimate:
    """Direct method: mean over rows of a reward model's expectation under the target policy.

    No variance from the draws, all of the model's bias; the interval knows nothing of that bias.
    A row's expectation is the sum over ads of target(ad | request) times the predicted reward.

    Raises:
        ValueError: Non-finite predictions, no rows.
    """
    term = check_finite(expected_prediction, "expected_prediction")
    rows = term.new_full(term.shape[:-1], float(term.shape[-1]))
    return estimate_mean(term, rows, torch.ones_like(rows, dtype=torch.bool))


def doubly_robust(
    reward: Real[Tensor, "*#batch n"],
    propensity: Float[Tensor, "*#batch n"],
    target: Float[Tensor, "*#batch n"],
    prediction: Float[Tensor, "*#batch n"],
    expected_prediction: Float[Tensor, "*#batch n"],
    *,
    max_weight: float | None = None,
) -> Estimate:
    """Doubly robust: mean of E_target[q] + w (r - q(logged ad)) (Dudik et al. 2011).

    Unbiased if the propensities or the predictions are right; the variance is that of the
    model's residuals instead of the rewards. `prediction` is that of the logged ad,
    `expected_prediction` as in `direct_method`; other arguments and errors: see `ips`.
    """
    weight = importance_weights(propensity, target, max_weight)
    expected = check_finite(expected_prediction, "expected_prediction")
    residual = check_finite(reward, "reward") - check_finite(prediction, "prediction")
    return _weighted_mean(expected + weight * residual, weight)
