"""HEPO with a reward of one's own beside Eq. 5: `python examples/custom_reward.py`.

Half a minute on one core. In the benchmarks the same reward is
`python -m benchmarks.run --reward final_value --reward examples.custom_reward:affordable=60`.
"""

import torch
from torch import Tensor

from agents.methods import TrainConfig
from agents.trainer import train
from agents.warm_start import WarmStartConfig, warm_start
from gpr_rl.pretraining.trainer import StageConfig
from simulators.make import load_world
from simulators.rewards import Outcome, RewardMix, register_reward

CPM = 0


@register_reward("affordable")
def affordable(outcome: Outcome) -> Tensor:
    """1 for products of at most 15, 0 for others, [B, K]; NaN for CPM ads, which sell nothing."""
    cheap = (outcome.price <= 15.0).to(outcome.ecpm.dtype)
    return torch.where(outcome.bid_type == CPM, torch.nan, cheap)


def main() -> None:
    """Train for both goals and print what became of each."""
    world = load_world("tiny", seed=0)
    mix = RewardMix.from_specs(["final_value", "affordable=60", "user_value=0"])  # 0: only logged
    stages = WarmStartConfig(
        mtp=StageConfig(num_steps=40),
        vaft=StageConfig(num_steps=10, learning_rate=1e-3),
        critic=StageConfig(num_steps=20, learning_rate=3e-3),
    )
    model = warm_start(world, stages, seed=0, reward=mix)
    history = train(model, world, "hepo", TrainConfig(num_steps=30), seed=0, reward=mix)
    print(f"{'mean over 5 steps':20} {'raw':>18} {'weighted':>18}")
    for name in mix.functions:
        cells = []
        for key in (f"component/{name}", f"component_weighted/{name}"):
            first, last = (sum(m[key] for m in part) / 5 for part in (history[:5], history[-5:]))
            cells.append(f"{first:7.2f} -> {last:7.2f}")
        print(f"{name:20} {cells[0]:>18} {cells[1]:>18}")


if __name__ == "__main__":
    main()
