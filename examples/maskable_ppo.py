"""MaskablePPO of sb3-contrib on the environment: `python examples/maskable_ppo.py [WORLD] [STEPS]`.

Half a minute on one core for the default world `tiny`. Installed with
`python -m pip install -e '.[sb3]'`. Stable-Baselines3 makes its own network of the observation;
`action_masks` of the environment is what it looks for.
"""

import sys

import gymnasium
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3.common.callbacks import BaseCallback


class MeanReward(BaseCallback):
    """Prints the mean reward of the requests of every rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.rewards: list[float] = []

    def _on_step(self) -> bool:
        done = self.locals["dones"]
        self.rewards.extend(self.locals["rewards"][done].tolist())
        return True

    def _on_rollout_end(self) -> None:
        print(f"{self.num_timesteps:6d} reward {sum(self.rewards) / len(self.rewards):7.1f}")
        self.rewards.clear()


def main() -> None:
    """Train from scratch and print what the ads are worth, rollout by rollout."""
    torch.set_num_threads(1)  # the network is small: two threads are slower
    world = sys.argv[1] if len(sys.argv) > 1 else "tiny"
    num_steps = int(sys.argv[2]) if len(sys.argv) > 2 else 6_000
    env = gymnasium.make("envs:gpr_rl/AdRequest-v0", world=world)
    model = MaskablePPO(
        "MultiInputPolicy",
        gymnasium.wrappers.TransformReward(env, lambda reward: reward / 100.0),
        n_steps=600,
        batch_size=100,
        gamma=1.0,
        seed=0,
    )
    model.learn(num_steps, callback=MeanReward())


if __name__ == "__main__":
    main()
