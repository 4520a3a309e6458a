"""MaskablePPO of sb3-contrib on the environment: `python examples/maskable_ppo.py [WORLD] [STEPS]`.

A minute on one core for the default world `tiny`. Installed with
`python -m pip install -e '.[sb3]'`. Stable-Baselines3 makes its own network of the observation, of
which it is shown what small networks can read. `action_masks` of the environment is what it looks
for.
"""

import sys

import gymnasium
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3.common.callbacks import BaseCallback

SHOWN = ["popularity", "preference", "prefix", "level", "action_mask"]
SCALE = 100.0
"""Of rewards, so that the critic learns small numbers."""


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
        mean = SCALE * sum(self.rewards) / len(self.rewards)
        print(f"{self.num_timesteps:6d} reward {mean:7.1f}")
        self.rewards.clear()


def main() -> None:
    """Train from scratch and print what the ads are worth, rollout by rollout."""
    torch.set_num_threads(1)  # the network is small: two threads are slower
    world = sys.argv[1] if len(sys.argv) > 1 else "tiny"
    num_steps = int(sys.argv[2]) if len(sys.argv) > 2 else 12_000
    env = gymnasium.make("envs:gpr_rl/AdRequest-v0", world=world)
    env = gymnasium.wrappers.FilterObservation(env, SHOWN)
    env = gymnasium.wrappers.TransformReward(env, lambda reward: reward / SCALE)
    model = MaskablePPO(
        "MultiInputPolicy",
        env,
        n_steps=1_200,
        batch_size=200,
        learning_rate=1e-3,
        gamma=1.0,
        seed=0,
    )
    model.learn(num_steps, callback=MeanReward())


if __name__ == "__main__":
    main()
