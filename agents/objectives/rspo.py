"""RSPO: ranking-guided softmax preference optimisation over a request's candidates (GR4AD).

Dims: B requests, K candidates, L levels.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import softplus

from agents.actor_critic import make_policy_head
from agents.candidates import (
    check_above,
    check_range,
    check_shape,
    keep_valid,
    mean_over_candidates,
    resolve_valid,
)
from agents.modules.rollout_loss import Actor, RolloutLoss, path_log_prob, reference_path_log_prob
from agents.registry import Method, register_method, tuning_space
from agents.shared_config import SharedConfig


@dataclass(frozen=True, kw_only=True)
class RSPOConfig(SharedConfig):
    """The dials of rspo, and of vsl_rspo's preferences."""

    rspo_beta: float = 0.3
    """beta of RSPO, per nat of the whole path. Not given in the source."""
    rspo_delta: float = 1.0
    """delta of RSPO, nats: the reference counts while the mean log-ratio is below it. Not given
    in the source."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above("rspo_beta", self.rspo_beta)


def rspo_loss(
    log_prob: Float[Tensor, "B K"],
    ref_log_prob: Float[Tensor, "B K"] | None,
    reward: Float[Tensor, "B K"],
    beta: float,
    delta: float,
    valid: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, ""]:
    """Return -mean_i log2 sigmoid(-log sum_{j: v_j < v_i} M_ij exp(beta [lr_j - lr_i])).

    M_ij = |1/D_{|i-j|} - 1/D_{|i-j|+1}| |G_i - G_j| is LambdaLoss's NDCG-Loss2 weight: |i-j| is the
    distance of the two in the ranking by log-probability, D_k = log2(1 + k), and G the gain over
    the request's ideal DCG. So a pair weighs as much as its order matters for NDCG. The gain is the
    reward itself (2^v overflows for eCPM), shifted to be at least 0. Without a reference and with
    beta 1 the number of valid candidates times this loss bounds 1 - NDCG from above.

    lr = log pi - C_i log pi_ref. C_i is 1 where the mean log-ratio to the reference over i and the
    candidates worse than i is below `delta`, else 0: the pull to the reference is dropped where
    the policy has left it already. Ranks, weights and C are constants.

    Args:
        log_prob: log pi of the whole path, nats (the sum over levels).
        ref_log_prob: Under the frozen reference, or None for C = 0 throughout.
        reward: v, any unit; its scale cancels.
        beta: Sharpness, above 0.
        delta: Threshold of the mean log-ratio, nats.
        valid: Candidates that count, all by default.

    Returns:
        Mean over all valid candidates, in bits; one with nothing worse adds 0. 0 with a graph if
        none is valid.

    Raises:
        ValueError: A wrong shape, or beta that is not above 0.
    """
    losses = rspo_losses(log_prob, ref_log_prob, reward, beta, delta, valid)
    return mean_over_candidates(losses, resolve_valid(valid, log_prob))


def rspo_losses(
    log_prob: Float[Tensor, "B K"],
    ref_log_prob: Float[Tensor, "B K"] | None,
    reward: Float[Tensor, "B K"],
    beta: float,
    delta: float,
    valid: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, "B K"]:
    """Return each candidate's own term of `rspo_loss`, bits; 0 where it is not valid."""
    check_shape("log_prob", log_prob, "B, K")
    check_shape("reward", reward, "B, K", log_prob.shape)
    check_above("beta", beta)
    mask = resolve_valid(valid, log_prob)
    log_prob = keep_valid(log_prob, mask)
    reward = keep_valid(reward.detach(), mask)
    pair = mask[:, :, None] & mask[:, None, :]
    worse = pair & (reward[:, :, None] > reward[:, None, :])  # [b, i, j]: j is worse than i

    difference = log_prob[:, None, :] - log_prob[:, :, None]  # lr_j - lr_i
    if ref_log_prob is not None:
        check_shape("ref_log_prob", ref_log_prob, "B, K", log_prob.shape)
        reference = keep_valid(ref_log_prob.detach(), mask)
        anchored = _anchored(log_prob.detach() - reference, worse, delta)
        pull = reference[:, None, :] - reference[:, :, None]
        difference = difference - torch.where(anchored[:, :, None], pull, 0.0)

    weight = torch.where(worse, _lambda_weights(log_prob.detach(), reward, mask), 0.0)
    counts = weight > 0
    log_weight = torch.where(counts, weight, 1.0).log()
    score = torch.where(counts, log_weight + beta * difference, -torch.inf)
    some = counts.any(-1)
    log_sum = torch.where(some[:, :, None], score, 0.0).logsumexp(-1)
    return torch.where(some, softplus(log_sum) / math.log(2.0), 0.0)


def _anchored(log_ratio: Tensor, worse: Tensor, delta: float) -> Tensor:
    """Return C_i as bool [B, K]: is the mean log-ratio over i and its worse set below delta?"""
    total = log_ratio + torch.where(worse, log_ratio[:, None, :], 0.0).sum(-1)
    return total / (1 + worse.sum(-1)) < delta


def _lambda_weights(log_prob: Tensor, reward: Tensor, mask: Tensor) -> Tensor:
    """Return M_ij [B, K, K]; equal log-probabilities share their rank, which weighs 0."""
    gain = keep_valid(reward - reward.amin(-1, keepdim=True).clamp_max(0.0), mask)
    place = torch.arange(1, gain.shape[-1] + 1, dtype=gain.dtype, device=gain.device)
    ideal = (gain.sort(-1, descending=True).values / (1.0 + place).log2()).sum(-1)
    gain = gain / torch.where(ideal > 0, ideal, 1.0)[:, None]
    score = torch.where(mask, log_prob, -torch.inf)
    rank = (score[:, None, :] > score[:, :, None]).sum(-1)
    distance = (rank[:, :, None] - rank[:, None, :]).abs().to(gain.dtype)
    apart = distance > 0
    distance = torch.where(apart, distance, 1.0)
    discount = 1.0 / (1.0 + distance).log2() - 1.0 / (2.0 + distance).log2()
    return torch.where(apart, discount, 0.0) * (gain[:, :, None] - gain[:, None, :]).abs()


class RSPOLoss(RolloutLoss):
    """RSPO over a rollout's candidates."""

    reads = ("codes", "valid", "terminal_reward", "reference_log_probs")

    def __init__(self, actor_network: Actor, *, beta: float = 0.3, delta: float = 1.0) -> None:
        super().__init__(actor_network)
        check_range("beta", beta, 0.0)
        self.beta = beta
        self.delta = delta

    def losses(self, data: TensorDictBase, distribution: Distribution) -> TensorDict:
        """Return the loss, see the class."""
        loss = rspo_loss(
            path_log_prob(data, distribution),
            reference_path_log_prob(data),
            data["terminal_reward"],
            self.beta,
            self.delta,
            data["valid"],
        )
        return TensorDict({"loss_objective": loss})


_SPACE = tuning_space(has_entropy=False, rspo_beta=(0.1, 0.3, 1.0), rspo_delta=(0.3, 1.0, 3.0))


@register_method("rspo", config=RSPOConfig, search_space=_SPACE)
def rspo(config: RSPOConfig, num_levels: int) -> Method:
    """GR4AD's list-wise preferences over all candidates; the warm start is the reference."""
    loss = RSPOLoss(make_policy_head(), beta=config.rspo_beta, delta=config.rspo_delta)
    return Method(None, loss, uses_reference=True)
