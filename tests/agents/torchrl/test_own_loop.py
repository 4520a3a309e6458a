"""The trainer and a loop of TorchRL's parts make the same weights of the same draws."""

import copy

import pytest
import torch
from torch.nn.utils import clip_grad_norm_
from torchrl.data import LazyTensorStorage, ReplayBuffer, SamplerWithoutReplacement

from agents.methods import TrainConfig, make_method, method_names
from agents.objectives import HEPOAdvantage, HEPOLoss
from agents.rollout import rollout
from agents.torchrl import (
    GroupCandidates,
    HTECritic,
    PolicyLogits,
    ReferenceLogProbs,
    make_actor,
    make_critic,
)
from agents.trainer import train
from agents.training.schedule import make_schedule
from gpr_rl.models import HHD
from simulators.world import World
from tests.gpr_rl.models.model_inputs import make_model

K, B, SEED = 4, 6, 3
CONFIG = TrainConfig(
    num_steps=2,
    num_requests=B,
    num_candidates=K,
    kl_penalty=0.0,
    kl_stop=None,
    dpo_num_pairs=2,
    sdpo_num_negatives=3,
    critic_warmup_steps=0,
    critic_updates=1,
    critic_requests=B,
)


def own_loop(model: HHD, world: World, name: str) -> None:
    """Train as `train` does, of TorchRL's parts alone but for the draws."""
    method, learning_rate = make_method(name, CONFIG, world.spec.num_levels)
    reference = copy.deepcopy(model).eval().requires_grad_(False)
    logits = PolicyLogits(model)
    critic = HEPOLoss(make_actor(model), HTECritic(model))
    policy_optimizer = torch.optim.Adam(model.policy_parameters(), learning_rate, fused=True)
    critic_optimizer = torch.optim.Adam(model.hte_parameters(), 1e-3, fused=True)
    fold = GroupCandidates(K, reward_scale=world.reward_scale)
    schedule = make_schedule(world, CONFIG, SEED)
    for step in range(CONFIG.num_steps):
        drawn_from = reference if method.is_offline else model
        drawn = rollout(drawn_from, world, schedule(step), None, CONFIG, SEED, step)
        data = fold(fold.inverse(drawn))
        if method.uses_reference:
            data = ReferenceLogProbs(reference)(data)
        if method.advantage is not None:
            data = method.advantage(data)
        for epoch in range(CONFIG.num_epochs):
            batch = logits(data.copy())
            if epoch == 0 and method.uses_critic:
                critic_optimizer.zero_grad()
                critic.loss_critic(batch).backward()
                critic_optimizer.step()
            losses = method.loss(batch)
            policy_optimizer.zero_grad()
            named = [value for key, value in losses.items() if key.startswith("loss_")]
            torch.stack(named).sum().backward()
            clip_grad_norm_(model.policy_parameters(), CONFIG.max_grad_norm)
            policy_optimizer.step()


@pytest.mark.parametrize("name", method_names())
def test_the_trainer_and_an_own_loop_end_at_the_same_bits(world: World, name: str) -> None:
    start = make_model(spec=world.spec).eval()
    start.hte.reward_scale.fill_(world.reward_scale)
    trained, looped = copy.deepcopy(start), copy.deepcopy(start)
    train(trained, world, name, CONFIG, SEED)
    own_loop(looped, world, name)
    moved = False
    for (key, one), other, before in zip(
        trained.state_dict().items(),
        looped.state_dict().values(),
        start.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(one, other), key
        moved |= not torch.equal(one, before)
    assert moved


def test_one_loss_with_actor_and_critic_gives_both_gradients(world: World) -> None:
    """HEPOLoss as a user calls it, through a replay buffer, against its parts one by one."""
    model = make_model(spec=world.spec).eval()
    ids = world.request_ids("train")[:B]
    fold = GroupCandidates(K, reward_scale=world.reward_scale)
    data = fold(fold.inverse(rollout(model, world, ids, None, CONFIG, 0, 0)))
    stored = data.pop("state_value")
    HEPOAdvantage(make_critic(model))(data)
    torch.testing.assert_close(data["state_value"], stored, rtol=1e-9, atol=1e-12)
    buffer = ReplayBuffer(
        storage=LazyTensorStorage(B), sampler=SamplerWithoutReplacement(shuffle=False), batch_size=B
    )
    buffer.extend(data)
    loss = HEPOLoss(make_actor(model), HTECritic(model), critic_coeff=0.5)
    losses = loss(buffer.sample())
    (losses["loss_objective"] + losses["loss_critic"]).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    batch = PolicyLogits(model)(data.copy())
    method, _ = make_method("hepo", CONFIG, world.spec.num_levels)
    method.loss(batch)["loss_objective"].backward()
    HEPOLoss(make_actor(model), HTECritic(model)).loss_critic(batch).mul(0.5).backward()
    wanted = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(found) == set(wanted)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
