"""PPO in one file on the vector environment: `python examples/cleanrl_ppo.py [WORLD] [UPDATES]`.

In the manner of CleanRL: a small network, a loop, nothing hidden. It reads the popularity of codes,
what this user liked, and the codes so far; illegal codes are masked. Ten seconds on one core for
the default world `tiny`. Installed with `python -m pip install -e .`.
"""

import sys

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

NUM_ENVS, EPOCHS, CLIP, ENTROPY = 256, 4, 0.2, 0.01


class Agent(nn.Module):
    """Actor and critic on a flat view of the observation."""

    def __init__(self, spaces: gymnasium.spaces.Dict, num_codes: int) -> None:
        super().__init__()
        self.num_codes = num_codes
        levels = spaces["prefix"].shape[0]
        width = 2 * levels * num_codes + levels * num_codes + levels + 1
        self.body = nn.Sequential(nn.Linear(width, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh())
        self.actor, self.critic = nn.Linear(128, num_codes), nn.Linear(128, 1)

    def forward(self, observation: dict[str, Tensor]) -> tuple[Categorical, Tensor]:
        """Return the distribution over legal codes and the value, [B]."""
        level = observation["level"]
        levels = observation["prefix"].shape[1]
        chosen = torch.arange(levels) < level[:, None]
        prefix = nn.functional.one_hot(observation["prefix"], self.num_codes) * chosen[..., None]
        parts = [
            observation["popularity"].flatten(1),
            observation["preference"].flatten(1),
            prefix.flatten(1).float(),
            nn.functional.one_hot(level, levels + 1).float(),
        ]
        hidden = self.body(torch.cat(parts, 1))
        logits = self.actor(hidden).masked_fill(observation["action_mask"] == 0, -1e8)
        return Categorical(logits=logits), self.critic(hidden)[:, 0]


def as_tensors(observation: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Return what the agent reads."""
    keys = ("popularity", "preference", "prefix", "level", "action_mask")
    return {key: torch.from_numpy(observation[key]) for key in keys}


def main() -> None:
    """Train from scratch and print what the ads are worth, update by update."""
    torch.set_num_threads(1)  # the network is small: two threads are slower
    torch.manual_seed(0)
    world = sys.argv[1] if len(sys.argv) > 1 else "tiny"
    num_updates = int(sys.argv[2]) if len(sys.argv) > 2 else 40
    envs = gymnasium.make_vec("envs:gpr_rl/AdRequest-v0", num_envs=NUM_ENVS, world=world)
    agent = Agent(envs.single_observation_space, int(envs.single_action_space.n))
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3)
    observation, _ = envs.reset(seed=0)
    for update in range(num_updates):
        steps: list[tuple[dict[str, Tensor], Tensor, Tensor]] = []
        ended = np.zeros(NUM_ENVS, dtype=bool)
        while not ended.all():  # legal codes only: all rows end at the last level
            state = as_tensors(observation)
            with torch.no_grad():
                distribution, _ = agent(state)
                action = distribution.sample()
            steps.append((state, action, distribution.log_prob(action)))
            observation, reward, ended, _, _ = envs.step(action.numpy())
        observation, _ = envs.reset()
        returns = torch.from_numpy(reward).float() / 100.0  # paid at the end, undiscounted
        for _ in range(EPOCHS):
            loss = torch.zeros(())
            for state, action, old_log_prob in steps:
                distribution, value = agent(state)
                advantage = returns - value.detach()
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                ratio = (distribution.log_prob(action) - old_log_prob).exp()
                bounded = ratio.clamp(1 - CLIP, 1 + CLIP)
                policy = -torch.minimum(ratio * advantage, bounded * advantage).mean()
                critic = 0.5 * (value - returns).square().mean()
                loss = loss + policy + critic - ENTROPY * distribution.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()
        print(f"{update:3d} reward {reward.mean():7.1f}")


if __name__ == "__main__":
    main()
