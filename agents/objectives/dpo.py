"""DPO on pairs of a request's own candidates, ordered by reward (a baseline of GPR Tab. 3).

Dims: B requests, K candidates, L levels, P pairs.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid, softplus

from agents.actor_critic import make_policy_head
from agents.candidates import check_above, check_range, check_shape, keep_valid, resolve_valid
from agents.modules.rollout_loss import Actor, RolloutLoss, path_log_prob, reference_path_log_prob
from agents.registry import Method, register_method, tuning_space
from agents.shared_config import SharedConfig


@dataclass(frozen=True, kw_only=True)
class DPOConfig(SharedConfig):
    """The dials of dpo, dpo_offline and sdpo."""

    dpo_beta: float = 0.5
    """beta of DPO, per nat of the whole path. Not given in the paper."""
    dpo_num_pairs: int = 4
    """Pairs per request: i-th best against i-th worst by reward. Not given in the paper."""
    sdpo_num_negatives: int = 7
    """Worse candidates that the best one is held against."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above("dpo_beta", self.dpo_beta)


def dpo_loss(
    log_prob_chosen: Float[Tensor, " P"],
    log_prob_rejected: Float[Tensor, " P"],
    ref_log_prob_chosen: Float[Tensor, " P"],
    ref_log_prob_rejected: Float[Tensor, " P"],
    beta: float,
) -> Float[Tensor, ""]:
    """Return -mean log sigmoid(beta [(lp_c - ref_c) - (lp_r - ref_r)]) (Rafailov et al. 2023).

    In nats, to be minimised; 0 with a graph for no pairs. Log-probabilities are those of whole
    paths (the sum over levels), under the policy and, as constants, under the frozen reference.
    `beta`, above 0, is the strength of the pull towards the reference.

    Raises:
        ValueError: A wrong shape, or beta that is not above 0.
    """
    check_shape("log_prob_chosen", log_prob_chosen, "P")
    shape = log_prob_chosen.shape
    check_shape("log_prob_rejected", log_prob_rejected, "P", shape)
    check_shape("ref_log_prob_chosen", ref_log_prob_chosen, "P", shape)
    check_shape("ref_log_prob_rejected", ref_log_prob_rejected, "P", shape)
    check_above("beta", beta)
    chosen = log_prob_chosen - ref_log_prob_chosen.detach()
    rejected = log_prob_rejected - ref_log_prob_rejected.detach()
    return -logsigmoid(beta * (chosen - rejected)).sum() / max(len(log_prob_chosen), 1)


def sdpo_loss(
    log_prob_chosen: Float[Tensor, " P"],
    log_prob_rejected: Float[Tensor, "P N"],
    ref_log_prob_chosen: Float[Tensor, " P"],
    ref_log_prob_rejected: Float[Tensor, "P N"],
    beta: float,
    valid: Bool[Tensor, "P N"] | None = None,
) -> Float[Tensor, ""]:
    """Return -mean log sigmoid(-log sum_j exp(beta [lr_j - lr_chosen])), lr = lp - ref.

    S-DPO (Chen et al. 2024): one chosen path against several rejected ones at once; with a single
    one it is DPO. `valid` tells which rejected paths count, all by default; a row without any adds
    nothing. The other arguments, and the errors, are those of `dpo_loss`.
    """
    check_shape("log_prob_rejected", log_prob_rejected, "P, N")
    shape = log_prob_rejected.shape
    check_shape("log_prob_chosen", log_prob_chosen, "P", shape[:1])
    check_shape("ref_log_prob_chosen", ref_log_prob_chosen, "P", shape[:1])
    check_shape("ref_log_prob_rejected", ref_log_prob_rejected, "P, N", shape)
    check_above("beta", beta)
    mask = resolve_valid(valid, log_prob_rejected)
    some = mask.any(-1)
    chosen = torch.where(some, log_prob_chosen - ref_log_prob_chosen.detach(), 0.0)
    rejected = keep_valid(log_prob_rejected, mask)
    rejected = rejected - keep_valid(ref_log_prob_rejected.detach(), mask)
    score = torch.where(mask, beta * (rejected - chosen[:, None]), -torch.inf)
    log_sum = torch.where(some[:, None], score, 0.0).logsumexp(-1)
    per_row = torch.where(some, softplus(log_sum), 0.0)
    return per_row.sum() / some.sum().clamp_min(1)


def preference_pairs(
    terminal_reward: Float[Tensor, "B K"],
    num_pairs: int,
    valid: Bool[Tensor, "B K"] | None = None,
) -> tuple[Int[Tensor, "B P"], Int[Tensor, "B P"], Bool[Tensor, "B P"]]:
    """Return per request the candidates (i-th best, i-th worst) for i < num_pairs, and which count.

    A pair counts where both are valid and the first has strictly more reward, in any unit, so equal
    rewards (the same path drawn twice) never form a pair. Ties in the order go to the lower index.

    Raises:
        ValueError: A wrong shape, or num_pairs outside [1, K // 2].
    """
    check_shape("terminal_reward", terminal_reward, "B, K")
    check_range("num_pairs", num_pairs, 1, terminal_reward.shape[1] // 2)
    mask = resolve_valid(valid, terminal_reward)
    best = torch.where(mask, terminal_reward, -torch.inf)
    worst = torch.where(mask, terminal_reward, torch.inf)
    chosen = best.argsort(dim=-1, descending=True, stable=True)[:, :num_pairs]
    rejected = worst.argsort(dim=-1, stable=True)[:, :num_pairs]
    counts = best.gather(1, chosen) > worst.gather(1, rejected)
    return chosen, rejected, counts


class PreferencePairs(TensorDictModule):
    """Writes `chosen`, `rejected` (int64) and `pair_valid`, all [B, P], from `terminal_reward`."""

    def __init__(self, *, num_pairs: int = 4) -> None:
        super().__init__(
            lambda reward, valid: preference_pairs(reward, num_pairs, valid),
            in_keys=["terminal_reward", "valid"],
            out_keys=["chosen", "rejected", "pair_valid"],
        )


class DPOLoss(RolloutLoss):
    """DPO over the pairs of a rollout; the reference's log-probabilities come with the rollout.

    `pair_accuracy` is the share of pairs whose chosen path gained more over the reference than the
    rejected one.
    """

    reads = ("codes", "valid", "chosen", "rejected", "pair_valid", "reference_log_probs")
    writes = ("loss_objective", "entropy", "pair_accuracy")

    def __init__(self, actor_network: Actor, *, beta: float = 0.5) -> None:
        super().__init__(actor_network)
        self.beta = beta

    def count(self, data: TensorDictBase) -> Tensor:
        """Return the pairs that the loss is the mean over."""
        return data["pair_valid"].sum()

    def losses(self, data: TensorDictBase, distribution: Distribution) -> TensorDict:
        """Return the loss, see the class."""
        log_prob = path_log_prob(data, distribution)
        reference = reference_path_log_prob(data)
        chosen, rejected, ref_chosen, ref_rejected = (
            source.gather(1, data[side])[data["pair_valid"]]
            for source in (log_prob, reference)
            for side in ("chosen", "rejected")
        )
        loss = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, self.beta)
        with torch.no_grad():
            margin = (chosen - ref_chosen) - (rejected - ref_rejected)
            accuracy = (margin > 0).to(margin.dtype).sum() / max(len(margin), 1)
        return TensorDict({"loss_objective": loss, "pair_accuracy": accuracy})


class SDPOLoss(RolloutLoss):
    """S-DPO over a rollout: each request's best candidate against its worst ones.

    Only candidates with strictly less reward than the best count as worse.
    """

    reads = ("codes", "valid", "terminal_reward", "reference_log_probs")

    def __init__(self, actor_network: Actor, *, beta: float = 0.5, num_negatives: int = 7) -> None:
        super().__init__(actor_network)
        check_range("num_negatives", num_negatives, 1)
        self.beta = beta
        self.num_negatives = num_negatives

    def count(self, data: TensorDictBase) -> Tensor:
        """Return the requests that the loss is the mean over: those with a worse candidate."""
        return self._ranked(data)[2].any(-1).sum()

    def _ranked(self, data: TensorDictBase) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best candidate [B, 1], the worst ones [B, n], and which of these are worse."""
        reward, valid = data["terminal_reward"], data["valid"]
        best = torch.where(valid, reward, -torch.inf).argmax(-1, keepdim=True)
        worst = torch.where(valid, reward, torch.inf).argsort(dim=-1, stable=True)
        worst = worst[:, : self.num_negatives]
        worse = reward.gather(1, worst) < reward.gather(1, best)
        return best, worst, valid.gather(1, worst) & worse

    def losses(self, data: TensorDictBase, distribution: Distribution) -> TensorDict:
        """Return the loss, see the class."""
        log_prob = path_log_prob(data, distribution)
        reference = reference_path_log_prob(data)
        best, worst, counts = self._ranked(data)
        loss = sdpo_loss(
            log_prob.gather(1, best)[:, 0],
            log_prob.gather(1, worst),
            reference.gather(1, best)[:, 0],
            reference.gather(1, worst),
            self.beta,
            counts,
        )
        return TensorDict({"loss_objective": loss})


_BETAS = (0.2, 0.5, 1.0)
_PAIRS_SPACE = tuning_space(has_entropy=False, dpo_beta=_BETAS, dpo_num_pairs=(1, 2, 4))
_LIST_SPACE = tuning_space(has_entropy=False, dpo_beta=_BETAS, sdpo_num_negatives=(1, 3, 7))


@register_method("dpo", config=DPOConfig, search_space=_PAIRS_SPACE)
def dpo(config: DPOConfig, num_levels: int) -> Method:
    """Iterative DPO: fresh pairs from each step's candidates; the warm start is the reference."""
    check_range("dpo_num_pairs", config.dpo_num_pairs, 1, config.num_candidates // 2)
    pairs = PreferencePairs(num_pairs=config.dpo_num_pairs)
    return Method(pairs, DPOLoss(make_policy_head(), beta=config.dpo_beta), uses_reference=True)


@register_method("dpo_offline", config=DPOConfig, search_space=_PAIRS_SPACE)
def dpo_offline(config: DPOConfig, num_levels: int) -> Method:
    """DPO on pairs of the warm start's candidates, never of the policy's own."""
    return replace(dpo(config, num_levels), is_offline=True)


@register_method("sdpo", config=DPOConfig, search_space=_LIST_SPACE)
def sdpo(config: DPOConfig, num_levels: int) -> Method:
    """S-DPO: each request's best candidate against several worse ones at once."""
    num_negatives = config.sdpo_num_negatives
    check_range("sdpo_num_negatives", num_negatives, 1, config.num_candidates - 1)
    loss = SDPOLoss(make_policy_head(), beta=config.dpo_beta, num_negatives=num_negatives)
    return Method(None, loss, uses_reference=True)
