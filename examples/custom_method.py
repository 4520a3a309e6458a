"""A method of one's own beside GRPO: `python examples/custom_method.py`.

Half a minute on one core. In the benchmarks, with tuning, seeds and intervals, the same method is
`python -m benchmarks.run --methods grpo examples.custom_method:ranks`.

Dims: B requests, K candidates, L levels.
"""

import copy

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase

from agents import Method, SurrogateLoss, TrainConfig, make_policy_head, register_method, train
from agents.warm_start import WarmStartConfig, warm_start
from gpr_rl.pretraining.trainer import StageConfig
from simulators.make import load_world


class RankAdvantage(TensorDictModuleBase):
    """Writes `advantage` [B, K, L, 1]: a candidate's rank in its request, from -1 to 1.

    Ranks don't care how heavy the tail of eCPM is. Equal rewards share the middle of their ranks.
    """

    in_keys = ("terminal_reward", "codes", "valid")
    out_keys = ("advantage",)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the same TensorDict with `advantage` set."""
        reward, valid = tensordict["terminal_reward"], tensordict["valid"]
        pair = valid[:, :, None] & valid[:, None, :]
        sign = torch.where(pair, (reward[:, :, None] - reward[:, None, :]).sign(), 0.0)
        rank = sign.sum(-1) / (valid.sum(-1, keepdim=True) - 1).clamp_min(1)
        num_levels = tensordict["codes"].shape[-1]
        return tensordict.set("advantage", rank[..., None, None].repeat(1, 1, num_levels, 1))


@register_method("ranks", learning_rate=1e-3)
def ranks(config: TrainConfig, num_levels: int) -> Method:
    """The clipped surrogate on ranks in the place of z-scores."""
    return Method(RankAdvantage(), SurrogateLoss(make_policy_head(), clip=config.clip))


def main() -> None:
    """Train both from one warm start and print the mean reward of the last steps."""
    world = load_world("tiny", seed=0)
    stages = WarmStartConfig(
        mtp=StageConfig(num_steps=40),
        vaft=StageConfig(num_steps=10, learning_rate=1e-3),
        critic=StageConfig(num_steps=5, learning_rate=3e-3),
    )
    start = warm_start(world, stages, seed=0)
    for method in ("grpo", "ranks"):
        history = train(copy.deepcopy(start), world, method, TrainConfig(num_steps=30), seed=0)
        first, last = (sum(m["reward"] for m in part) / 5 for part in (history[:5], history[-5:]))
        print(f"{method:6} mean reward {first:6.2f} -> {last:6.2f}")


if __name__ == "__main__":
    main()
