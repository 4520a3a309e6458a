"""RAFT: imitation of the best of K candidates (Dong et al. 2023).

Dims: B requests, K candidates, L levels.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.distributions import Distribution

from agents.actor_critic import make_policy_head
from agents.candidates import check_range, check_shape, resolve_valid
from agents.modules.rollout_loss import Actor, RolloutLoss, path_log_prob
from agents.registry import Method, register_method, tuning_space
from agents.shared_config import SharedConfig


@dataclass(frozen=True, kw_only=True)
class RAFTConfig(SharedConfig):
    """The dial of raft."""

    raft_num_best: int = 1
    """Best candidates per request that are imitated."""


def raft_loss(
    log_prob: Float[Tensor, "B K"],
    reward: Float[Tensor, "B K"],
    num_best: int = 1,
    valid: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean negative log-likelihood of each request's best candidates, nats.

    Requests whose valid candidates all have one reward are left out: none of them is best. So is a
    candidate that is not better than the request's worst.

    It is the mean over requests of the mean over their `num_best` candidates (ties go to the lower
    index), and 0 with a graph if no request has any. `log_prob` is log pi of the whole path (the
    sum over levels), `reward` is R in any unit.

    Raises:
        ValueError: A wrong shape, or num_best outside [1, K].
    """
    check_shape("log_prob", log_prob, "B, K")
    check_shape("reward", reward, "B, K", log_prob.shape)
    check_range("num_best", num_best, 1, log_prob.shape[1])
    mask = resolve_valid(valid, log_prob)
    chosen = _imitated(reward.detach(), num_best, mask)
    count = chosen.sum(-1)
    per_request = torch.where(chosen, log_prob, 0.0).sum(-1) / count.clamp_min(1)
    return -per_request.sum() / (count > 0).sum().clamp_min(1)


def _imitated(reward: Tensor, num_best: int, mask: Tensor) -> Tensor:
    """Return which candidates are imitated, bool [B, K]."""
    score = torch.where(mask, reward, -torch.inf)
    worst = torch.where(mask, reward, torch.inf).amin(-1, keepdim=True)
    order = score.argsort(dim=-1, descending=True, stable=True)[:, :num_best]
    return torch.zeros_like(mask).scatter_(1, order, True) & mask & (score > worst)


class RAFTLoss(RolloutLoss):
    """RAFT over a rollout's candidates."""

    reads = ("codes", "valid", "terminal_reward")

    def __init__(self, actor_network: Actor, *, num_best: int = 1) -> None:
        super().__init__(actor_network)
        check_range("num_best", num_best, 1)
        self.num_best = num_best

    def count(self, data: TensorDictBase) -> Tensor:
        """Return the requests that the loss is the mean over."""
        chosen = _imitated(data["terminal_reward"], self.num_best, data["valid"])
        return chosen.any(-1).sum()

    def losses(self, data: TensorDictBase, distribution: Distribution) -> TensorDict:
        """Return the loss, see the class."""
        log_prob = path_log_prob(data, distribution)
        loss = raft_loss(log_prob, data["terminal_reward"], self.num_best, data["valid"])
        return TensorDict({"loss_objective": loss})


_SPACE = tuning_space(has_entropy=False, raft_num_best=(1, 2, 4))


@register_method("raft", config=RAFTConfig, search_space=_SPACE)
def raft(config: RAFTConfig, num_levels: int) -> Method:
    """Imitation of each request's best candidates."""
    check_range("raft_num_best", config.raft_num_best, 1, config.num_candidates)
    return Method(None, RAFTLoss(make_policy_head(), num_best=config.raft_num_best))
