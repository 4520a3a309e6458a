"""RAFT: imitation of the best of K candidates (Dong et al. 2023).

Dims: B requests, K candidates, L levels.
"""

import torch
from jaxtyping import Bool, Float
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential
from torch import Tensor
from torchrl.objectives import LossModule

from agents.objectives.surrogate import (
    check_range,
    check_shape,
    keep_valid,
    mean_over_candidates,
    resolve_valid,
)


def raft_loss(
    log_prob: Float[Tensor, "B K"],
    reward: Float[Tensor, "B K"],
    num_best: int = 1,
    valid: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean negative log-likelihood of each request's best candidates, nats.

    Requests whose valid candidates all have one reward are left out: none of them is best. So is a
    candidate that is not better than the request's worst.

    Args:
        log_prob: log pi of the whole path (the sum over levels).
        reward: R, any unit.
        num_best: How many are imitated, at least 1; ties go to the lower index.
        valid: Candidates that count, all by default.

    Returns:
        The mean over requests of the mean over their chosen candidates; 0 with a graph if no
        request has any.

    Raises:
        ValueError: A wrong shape, or num_best outside [1, K].
    """
    if log_prob.ndim != 2:
        raise ValueError(f"log_prob must have shape [B, K], got {tuple(log_prob.shape)}")
    check_shape("reward", reward, log_prob.shape, "B, K")
    check_range("num_best", num_best, 1, log_prob.shape[1])
    mask = resolve_valid(valid, log_prob)
    score = torch.where(mask, reward.detach(), -torch.inf)
    worst = torch.where(mask, reward.detach(), torch.inf).amin(-1, keepdim=True)
    order = score.argsort(dim=-1, descending=True, stable=True)[:, :num_best]
    chosen = torch.zeros_like(mask).scatter_(1, order, True) & mask & (score > worst)
    count = chosen.sum(-1)
    per_request = torch.where(chosen, log_prob, 0.0).sum(-1) / count.clamp_min(1)
    return -per_request.sum() / (count > 0).sum().clamp_min(1)


class RAFTLoss(LossModule):
    """RAFT over a rollout's candidates.

    Reads what the actor reads, and `codes`, `valid` and `terminal_reward`. Writes `loss_objective`
    and `entropy`.
    """

    actor_network: ProbabilisticTensorDictModule | ProbabilisticTensorDictSequential

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictModule | ProbabilisticTensorDictSequential,
        *,
        num_best: int = 1,
    ) -> None:
        super().__init__()
        check_range("num_best", num_best, 1)
        self.actor_network = actor_network
        self.num_best = num_best
        self.in_keys = ["codes", "valid", "terminal_reward", *actor_network.in_keys]
        self.out_keys = ["loss_objective", "entropy"]

    @property
    def functional(self) -> bool:
        """False: the network keeps its own parameters."""
        return False

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the loss; `tensordict` is left as it is."""
        tensordict = tensordict.copy()
        codes, valid = tensordict["codes"], tensordict["valid"]
        distribution = self.actor_network.get_dist(tensordict)
        log_prob = keep_valid(distribution.log_prob(codes), valid).sum(-1)
        out = TensorDict()
        out["loss_objective"] = raft_loss(
            log_prob, tensordict["terminal_reward"], self.num_best, valid
        )
        with torch.no_grad():
            out["entropy"] = mean_over_candidates(distribution.entropy(), valid)
        return out
