"""The architecture's upper bound: the rankers' best paths, learned by imitation.

All eligible ads of a request are scored, which costs many times what RL may spend: no rival.

Dims: B requests, N ads, P paths, L levels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.actor_critic import chosen_log_prob, masked_log_softmax
from agents.placing import beside
from agents.rollout import Reward
from agents.training.schedule import RequestSchedule
from gpr_rl.models import HHD
from gpr_rl.pretraining.trainer import StageConfig, train_stage
from simulators.world import World


@dataclass(frozen=True, kw_only=True)
class DistilConfig:
    """How the rankers are distilled into a policy."""

    num_requests: int = 64
    """Requests of a step; all their eligible ads are scored."""
    num_best: int = 32
    """Paths per request that the policy imitates."""
    temperature: float = 0.05
    """Of the softmax over their rewards, as a share of the request's best reward."""
    learning_rate: float = 2e-3


def distil(
    model: HHD, world: World, reward: Reward, config: DistilConfig, num_steps: int, seed: int
) -> None:
    """Train a policy in place on the cross-entropy to its requests' best paths.

    The targets are softmax(R / (temperature * best R)) over the `num_best` paths of highest
    reward R; a path earns what the ad earns that it resolves to.
    """
    world = beside(world, model)
    schedule = RequestSchedule(world.request_ids("train"), config.num_requests, seed)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        ids = schedule.batch(step)
        trie = world.trie.restrict(world.eligible(ids))
        with torch.no_grad():
            value = reward(world.outcome_all(ids))[0]
            of_path = value.gather(1, trie.path_ad.clamp_min(0))
            of_path = of_path.masked_fill(trie.path_ad < 0, -torch.inf)
            best, path = of_path.topk(min(config.num_best, of_path.shape[1]))
            unit = config.temperature * best[:, :1].abs().clamp_min(1e-9)
            target = torch.softmax(best / unit, dim=-1)
            valid = best > -torch.inf
        codes = torch.where(valid[..., None], world.trie.paths[path], world.trie.paths[path[:, :1]])
        logits = model.logits(model.encode(world.request(ids)), codes)
        log_probs = masked_log_softmax(logits, trie.path_masks(codes))
        chosen = chosen_log_prob(log_probs, codes).sum(-1)
        return -(target * chosen).sum(-1).mean(), {}

    stage = StageConfig(num_steps=num_steps, learning_rate=config.learning_rate)
    train_stage(
        [model.policy_parameters()], loss, stage, name="distilled", requests_of_step=schedule.batch
    )
