"""Every estimator on every log and target policy, graded against the known truth.

Errors are in units of the logging policy's true value, so 0.1 is a tenth of what it earns.

Dims: P requests, N ads, R replications (logs), n rows, S positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from agents.off_policy import (
    Estimate,
    cascade_doubly_robust,
    direct_method,
    doubly_robust,
    ips,
    slate_direct_method,
    slate_independent_ips,
    slate_reward_ips,
    slate_standard_ips,
    snips,
)
from agents.off_policy.plackett_luce import (
    conditional_probability,
    marginal_probability,
    reach_probability,
)
from benchmarks.off_policy.presets import OffPolicyPreset
from benchmarks.off_policy.tables import REWARDS, Logs, Tables, draw_logs

ATTENTION = 0.5
"""What the slates' reward model believes: half of the users go on, whatever stands above."""
_WEIGHTED = ("reward", "propensity", "target")
_MARGINAL = ("reward", "marginal_propensity", "marginal_target")
_MODELLED = (*_WEIGHTED, "prediction", "expected")
ESTIMATORS: dict[str, tuple[Callable[..., Estimate], tuple[str, ...]]] = {
    "ips": (ips, _WEIGHTED),
    "ips_clipped": (ips, _WEIGHTED),
    "snips": (snips, _WEIGHTED),
    "dm": (direct_method, ("expected",)),
    "dr": (doubly_robust, _MODELLED),
    "dr_clipped": (doubly_robust, _MODELLED),
    "slate_sips": (slate_standard_ips, _WEIGHTED),
    "slate_snsips": (partial(slate_standard_ips, self_normalized=True), _WEIGHTED),
    "slate_iips": (slate_independent_ips, _MARGINAL),
    "slate_sniips": (partial(slate_independent_ips, self_normalized=True), _MARGINAL),
    "slate_rips": (slate_reward_ips, _WEIGHTED),
    "slate_snrips": (partial(slate_reward_ips, self_normalized=True), _WEIGHTED),
    "slate_dm": (slate_direct_method, ("expected",)),
    "slate_cascade_dr": (cascade_doubly_robust, _MODELLED),
}
"""What each is made with, and of what, float64 [R, n], slates [R, n, S]."""

Found = dict[tuple[str, str, int], dict[str, Estimate]]
"""Estimates [R] of every target policy by (estimator, reward, rows per log)."""
Truth = dict[str, dict[str, float]]
"""True value of every policy by reward, the logging policy's own among them as `behavior`."""


def judge_ads(
    tables: Tables, methods: Sequence[str], sizes: OffPolicyPreset, seed: int
) -> tuple[Found, Truth]:
    """Return the estimates of the single-ad methods, and the truth: the slates have one ad."""
    sizes = replace(sizes, num_positions=1, slate_floor=0.0)
    return _judge(tables, methods, sizes, seed, lambda rows: rows[..., 0])


def judge_slates(
    tables: Tables, methods: Sequence[str], sizes: OffPolicyPreset, seed: int
) -> tuple[Found, Truth]:
    """Return the estimates of the slate methods, and the truth.

    A user who gets to an ad goes on below it with probability c / (c + median c), c being the true
    click probability and the median that of the request's legal ads. Positions that are not reached
    are no impressions. So rewards depend on the ads above, as in the cascade model.
    """
    return _judge(tables, methods, sizes, seed, lambda rows: rows)


def _judge(
    tables: Tables,
    methods: Sequence[str],
    sizes: OffPolicyPreset,
    seed: int,
    shaped: Callable[[Tensor], Tensor],
) -> tuple[Found, Truth]:
    """Return estimates and truth; estimators get rows [R, n, S] as `shaped` returns them."""
    num_positions = sizes.num_positions
    floor = {name: _with_floor(p, sizes.slate_floor) for name, p in tables.targets.items()}
    behavior = _with_floor(tables.logging, sizes.slate_floor)
    legal = tables.targets["uniform"] > 0
    typical = tables.pctr.where(legal, torch.nan).nanmedian(-1, keepdim=True).values
    stay = tables.pctr / (tables.pctr + typical)
    logs = draw_logs(tables, behavior, sizes, seed=seed, num_positions=num_positions)
    goes_on = (logs.noise < logs.take(stay)).long().cumprod(-1)
    reached = torch.cat([torch.ones_like(goes_on[..., :1]), goes_on[..., :-1]], dim=-1)
    attention = ATTENTION ** torch.arange(num_positions).double()
    policies = {**floor, "behavior": behavior}
    marginals = {k: marginal_probability(p, num_positions) for k, p in policies.items()}
    propensity = _conditional(behavior, logs)
    marginal_propensity = _marginal(marginals["behavior"], logs)
    rewards = {name: logs.reward(tables, name) * reached for name in REWARDS}
    found: Found = {}
    for policy, probability in floor.items():
        target = _conditional(probability, logs)
        marginal_target = _marginal(marginals[policy], logs)
        for name in REWARDS:
            # reward model: position s earns attention[s] * prediction, whatever stands above it
            predicted = tables.predicted[name]
            below = (marginals[policy] * predicted[:, None]).sum(-1) * attention  # [P, S]
            rest = (below.flip(-1).cumsum(-1).flip(-1) - below)[logs.row]
            rows = {
                "reward": rewards[name],
                "propensity": propensity,
                "target": target,
                "prediction": logs.take(predicted) * attention + rest,
                "expected": _expected_next(probability, predicted, logs) * attention + rest,
                "marginal_propensity": marginal_propensity,
                "marginal_target": marginal_target,
            }
            for size, method in product(sizes.log_sizes, methods):
                estimator, names = ESTIMATORS[method]
                clip = {"max_weight": sizes.max_weight} if method.endswith("_clipped") else {}
                estimate = estimator(*(shaped(rows[k][:, :size]) for k in names), **clip)
                found.setdefault((method, name, size), {})[policy] = estimate
    reach = {k: reach_probability(p, stay, num_positions).sum(1) for k, p in policies.items()}
    truth = {
        name: {policy: float((p * value).sum(-1).mean()) for policy, p in reach.items()}
        for name, value in tables.truth.items()
    }
    return found, truth


def _with_floor(probability: Tensor, floor: float) -> Tensor:
    legal = (probability > 0).double()
    return (1 - floor) * probability + floor * legal / legal.sum(-1, keepdim=True)


def _conditional(probability: Tensor, logs: Logs) -> Tensor:
    flat = conditional_probability(probability, logs.row.flatten(), logs.ad_id.flatten(0, 1))
    return flat.view(logs.ad_id.shape)


def _marginal(marginal: Tensor, logs: Logs) -> Tensor:
    """Return marginal [P, S, N] at the logged ads, [R, n, S]."""
    _, num_positions, num_ads = marginal.shape
    place = logs.row[..., None] * num_positions + torch.arange(num_positions)
    return marginal.flatten()[place * num_ads + logs.ad_id]


def _expected_next(probability: Tensor, predicted: Tensor, logs: Logs) -> Tensor:
    """Return the expected prediction of the ad at s given the logged ads above it, [R, n, S]."""
    mass, value = logs.take(probability), logs.take(probability * predicted)
    total = (probability * predicted).sum(-1)[logs.row][..., None]
    left = 1.0 - (mass.cumsum(-1) - mass)
    return (total - (value.cumsum(-1) - value)) / left.clamp_min(1e-12)


def grade(estimates: dict[str, Estimate], truth: dict[str, float]) -> dict[str, dict[str, float]]:
    """Return the grades of one estimator over target policies and replications.

    Args:
        estimates: Of every target policy, [R].
        truth: Of every target policy, and of the logging policy as `behavior`: the unit of errors.

    Returns:
        Of every policy, and over all as "": bias (mean over policies), rmse, median_error (of
        |error| over logs, mean over policies), coverage and effective_sample_size; over all also
        abs_bias, width (of the intervals of supported estimates), unsupported and
        rank_correlation (Spearman, over policies, mean over logs).
    """
    unit = abs(truth["behavior"])
    grades: dict[str, dict[str, float]] = {}
    for policy, e in estimates.items():
        error = (e.value - truth[policy]) / unit
        inside = (e.low <= truth[policy]) & (truth[policy] <= e.high)
        own = {
            "bias": error.mean(),
            "rmse": error.square().mean().sqrt(),
            "median_error": error.abs().median(),
            "coverage": inside.double().mean(),
            "effective_sample_size": e.effective_sample_size.mean(),
        }
        grades[policy] = {name: float(value) for name, value in own.items()}
    mean = {
        name: float(np.mean([grades[policy][name] for policy in estimates]))
        for name in ("bias", "median_error", "coverage", "effective_sample_size")
    }
    mean["abs_bias"] = float(np.mean([abs(grades[policy]["bias"]) for policy in estimates]))
    mean["rmse"] = float(np.sqrt(np.mean([grades[policy]["rmse"] ** 2 for policy in estimates])))
    supported = torch.stack([e.supported for e in estimates.values()])
    width = torch.stack([(e.high - e.low) / unit for e in estimates.values()])
    mean["unsupported"] = float((~supported).double().mean())
    if supported.any():
        mean["width"] = float(width[supported].mean())
    value = torch.stack([e.value for e in estimates.values()], dim=1).numpy()
    mean["rank_correlation"] = rank_correlation(value, [truth[policy] for policy in estimates])
    return {**grades, "": mean}


def rank_correlation(value: np.ndarray, truth: Sequence[float]) -> float:
    """Return Spearman's correlation of each row of `value` [R, Q] with `truth` [Q], mean over rows.

    Ties share their mean rank; a row that is constant tells nothing and counts as 0.
    """
    ours = pd.DataFrame(value).rank(axis=1).to_numpy()
    theirs = pd.Series(truth).rank().to_numpy()
    ours = ours - ours.mean(axis=1, keepdims=True)
    theirs = theirs - theirs.mean()
    size = np.sqrt((ours**2).sum(axis=1) * (theirs**2).sum())
    product = (ours * theirs).sum(axis=1)
    return float(np.divide(product, size, out=np.zeros_like(product), where=size > 0).mean())
