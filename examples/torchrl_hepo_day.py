"""HEPO on days of traffic, in TorchRL's own loop: `python examples/torchrl_hepo_day.py [WORLD] [STEPS]`.

Each request of a day gets K candidates. The first is played: it enters the auction, the user
reacts, budgets run down. The others are scored by the rankers only. A minute on one core for
the default world `tiny`. Installed with `python -m pip install -e .`.
"""  # noqa: E501

import sys

import torch
from torch.nn.utils import clip_grad_norm_
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer, SamplerWithoutReplacement

from agents.objectives import HEPOAdvantage, HEPOLoss
from agents.torchrl import GroupCandidates, HTECritic, make_actor, make_code_actor, make_critic
from agents.warm_start import WarmStartConfig, warm_start
from envs import AdDayTorchEnv
from gpr_rl.models import HHD
from simulators.make import load_world
from simulators.world import World

DAYS, REQUESTS, CANDIDATES, EPOCHS, MINIBATCH = 16, 64, 16, 2, 32


def train(model: HHD, world: World, num_steps: int) -> HHD:
    """Train a warm model in place, with `num_steps` batches of candidates, and return it."""
    rows = DAYS * CANDIDATES
    env = AdDayTorchEnv(world, [rows], candidates=CANDIDATES, seed=0)
    frames = REQUESTS * CANDIDATES * world.spec.num_levels
    collector = Collector(
        env,
        make_code_actor(model, candidates=CANDIDATES),
        frames_per_batch=frames,
        total_frames=num_steps * frames,
        postproc=GroupCandidates(
            CANDIDATES, reward_key=("next", "ranker_reward"), reward_scale=world.reward_scale
        ),
        auto_register_policy_transforms=False,
    )
    advantage = HEPOAdvantage(make_critic(model), through_terminal=True)
    loss = HEPOLoss(make_actor(model), HTECritic(model), entropy_coefficient=0.01)
    buffer = ReplayBuffer(
        storage=LazyTensorStorage(REQUESTS),
        sampler=SamplerWithoutReplacement(),
        batch_size=MINIBATCH,
    )
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    for step, data in enumerate(collector):
        buffer.extend(advantage(data))
        for _ in range(EPOCHS * REQUESTS // MINIBATCH):
            losses = loss(buffer.sample())
            total = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
            optimizer.zero_grad()
            total.backward()
            clip_grad_norm_(model.policy_parameters(), 1.0)
            optimizer.step()
        print(f"{step:3d} ranker reward {data['reward'][data['valid']].mean():7.1f}")
    collector.shutdown()
    return model


def main() -> None:
    """Train and print what the candidates are worth, batch by batch."""
    torch.set_num_threads(1)  # the model is small: two threads are slower
    torch.manual_seed(0)  # the actor draws its codes from torch's generator
    world = load_world(sys.argv[1] if len(sys.argv) > 1 else "tiny", seed=0)
    model = warm_start(world, WarmStartConfig(), seed=0)
    train(model, world, int(sys.argv[2]) if len(sys.argv) > 2 else 40)


if __name__ == "__main__":
    main()
