"""HEPO with rollout workers of a Ray cluster: `python examples/torchrl_ray.py [WORLD] [BATCHES]`.

Two workers draw candidates while the learner updates the policy, so a batch may be one version old.
Every batch says by which version it was drawn: older ones than allowed are dropped. Starts a
cluster on this machine; two minutes on two cores for the default world `tiny`. Installed with
`python -m pip install -e '.[ray]'`.
"""

import sys
from functools import partial

import torch
from torch.nn.utils import clip_grad_norm_
from torchrl.collectors.distributed import RayCollector

from agents.objectives import HEPOAdvantage, HEPOLoss
from agents.torchrl import (
    GroupCandidates,
    HTECritic,
    fresh,
    make_actor,
    make_code_actor,
    make_critic,
    next_version,
)
from agents.warm_start import WarmStartConfig, warm_start
from envs import AdRequestTorchEnv
from simulators.make import load_world

REQUESTS, CANDIDATES, WORKERS, EPOCHS, MAX_STALENESS = 64, 16, 2, 2, 2


def main() -> None:
    """Train and print reward and age of every batch."""
    torch.set_num_threads(1)  # the model is small: two threads are slower
    name = sys.argv[1] if len(sys.argv) > 1 else "tiny"
    num_batches = int(sys.argv[2]) if len(sys.argv) > 2 else 40
    world = load_world(name, seed=0)  # made before the workers ask for it
    model = warm_start(world, WarmStartConfig(), seed=0)
    actor = make_code_actor(model, candidates=CANDIDATES)
    rows = REQUESTS * CANDIDATES
    frames = rows * world.spec.num_levels
    make_env = partial(AdRequestTorchEnv, name, [rows], candidates=CANDIDATES)
    collector = RayCollector(
        [partial(make_env, seed=worker * rows) for worker in range(WORKERS)],
        actor,
        frames_per_batch=frames,
        total_frames=num_batches * frames,
        sync=False,  # first ready, first served
        collector_kwargs={"auto_register_policy_transforms": False},
        remote_configs={"num_cpus": 1},
        ray_init_config={"num_cpus": WORKERS, "log_to_driver": False, "include_dashboard": False},
    )
    fold = GroupCandidates(CANDIDATES, reward_scale=world.reward_scale)
    advantage = HEPOAdvantage(make_critic(model), through_terminal=True)
    loss = HEPOLoss(make_actor(model), HTECritic(model), entropy_coefficient=0.01)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    version = 0
    collector.update_policy_weights_()
    for batch, rows_of_steps in enumerate(collector):
        drawn = fold(rows_of_steps)
        data = fresh(drawn, version, MAX_STALENESS)
        age = version - int(drawn["policy_version"].min())
        print(f"{batch:3d} reward {drawn['reward'].mean():7.1f} age {age} used {len(data)}")
        if len(data) == 0:
            continue
        data = advantage(data)
        for _ in range(EPOCHS):
            losses = loss(data)
            total = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
            optimizer.zero_grad()
            total.backward()
            clip_grad_norm_(model.policy_parameters(), 1.0)
            optimizer.step()
        version = next_version(actor)
        collector.update_policy_weights_()
    collector.shutdown()


if __name__ == "__main__":
    main()
