"""Warm start, HEPO, and decoding on a small world: `python examples/train_hepo.py [WORLD]`.

A minute on one core for the default world `tiny`. Installed with `python -m pip install -e .`.
"""

import sys

from agents.methods import TrainConfig
from agents.trainer import train
from agents.warm_start import WarmStartConfig, warm_start
from gpr_rl.decoding import beam_search
from gpr_rl.policy import load_policy, save_policy
from gpr_rl.pretraining.trainer import StageConfig
from simulators.make import load_world


def main() -> None:
    """Train and show what the policy would serve to eight held-out requests."""
    world = load_world(sys.argv[1] if len(sys.argv) > 1 else "tiny", seed=0)
    config = WarmStartConfig(
        mtp=StageConfig(num_steps=100), vaft=StageConfig(num_steps=50, learning_rate=1e-3)
    )
    model = warm_start(world, config, seed=0)
    history = train(
        model,
        world,
        "hepo",
        TrainConfig(num_steps=40),
        seed=0,
        on_step=lambda step, m: print(f"{step:3d} reward {m['reward']:7.1f}  kl {m['kl']:.2f}"),
    )
    print(f"mean reward {history[0]['reward']:.1f} -> {history[-1]['reward']:.1f}")
    save_policy(model, "hepo.safetensors", world=world.info.name)
    policy, ids = load_policy("hepo.safetensors"), world.request_ids("test")[:8]
    ads = beam_search(
        policy, world.request(ids), world.trie, 5, world.eligible(ids), renormalize=True
    )
    print(ads.ad_id)


if __name__ == "__main__":
    main()
