"""PPO from TorchRL's own parts: `python examples/torchrl_collector.py [WORLD]`.

Collector, GAE and ClipPPOLoss with the HHD as actor and the HTE as critic. Half a minute on one
core for the default world `tiny`. Installed with `python -m pip install -e .`.
"""

import sys

import torch
from torch.nn.utils import clip_grad_norm_
from torchrl.collectors import Collector
from torchrl.envs import RewardScaling, TransformedEnv
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from agents.code_actor import CodeCritic, make_code_actor
from agents.warm_start import build_model
from envs import AdRequestTorchEnv
from gpr_rl.models import HHDConfig
from simulators.make import load_world


def main() -> None:
    """Train an untrained policy and print what its ads are worth, batch by batch."""
    torch.set_num_threads(1)  # the model is small: two threads are slower
    torch.manual_seed(0)  # the actor draws its codes from torch's generator
    world = load_world(sys.argv[1] if len(sys.argv) > 1 else "tiny", seed=0)
    model = build_model(world, HHDConfig(dim=32), seed=0)
    actor, critic = make_code_actor(model), CodeCritic(model)
    env = AdRequestTorchEnv(world, [128], seed=0)
    # The critic counts in units of the reward scale.
    env = TransformedEnv(env, RewardScaling(0.0, 1.0 / world.reward_scale))
    batch = 128 * world.spec.num_levels  # one request per row
    collector = Collector(
        env,
        actor,
        frames_per_batch=batch,
        total_frames=20 * batch,
        auto_register_policy_transforms=False,
    )
    # The HSD sorts tokens by type, which vmap can't.
    gae = GAE(gamma=1.0, lmbda=0.95, value_network=critic, deactivate_vmap=True)
    loss = ClipPPOLoss(actor, critic, entropy_coeff=0.01)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    for step, data in enumerate(collector):
        data = gae(data)
        for _ in range(3):
            losses = loss(data)
            sum(value for name, value in losses.items() if name.startswith("loss_")).backward()
            clip_grad_norm_(loss.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        ended = data["next", "done"].squeeze(-1)
        print(f"{step:3d} reward {data['next', 'final_value'][ended].mean():7.1f}")
    collector.shutdown()


if __name__ == "__main__":
    main()
