"""Policies to search with: one that costs nothing, and the trained one that parts share.

Dims: B requests, W prefixes, L levels, V codes per level.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agents.warm_start import WarmStartConfig, warm_start
from benchmarks.worlds import open_world
from gpr_rl.models import HHD
from gpr_rl.policy import load_policy, save_policy
from gpr_rl.random import Purpose, uniform
from gpr_rl.schema import Request
from simulators.rewards import RewardMix
from simulators.world import World


class TablePolicy:
    """Fixed log-probabilities per request and level, the same after every prefix.

    What it returns is made once, so that a search's time is that of decoding alone and the policy
    is the same to catalogues of all sizes. Requests are their numbers, int64 [B].
    """

    def __init__(self, batch: int, num_levels: int, num_codes: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(num_levels, batch, 1, num_codes, generator=generator)
        self._table = drawn.log_softmax(-1)
        self._made: dict[tuple[int, int], Tensor] = {}

    def encode(self, request: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Return the requests' numbers; the first B of them, in order."""
        return request

    def step(
        self, context: Int[Tensor, " B"], prefix: Int[Tensor, "B W l"]
    ) -> tuple[Float[Tensor, "B W V"], Float[Tensor, "B W"]]:
        """Return log-probabilities of the next code, and zeros for values."""
        batch, width, level = prefix.shape
        if (level, width) not in self._made:
            wide = self._table[level].expand(-1, width, -1).contiguous()
            self._made[level, width] = wide
        return self._made[level, width][:batch], prefix.new_zeros(batch, width).float()


def policy_file(out: Path) -> Path:
    """Return where the trained policy of a run is kept."""
    return out / "checkpoints" / "policy.safetensors"


def train_policy(
    *, out: Path, world: str, world_seed: int, reward: tuple[str, ...], config: WarmStartConfig
) -> None:
    """Train the policy that the parts with a world share, and save it."""
    loaded, mix = open_world(world, world_seed), RewardMix.from_specs(list(reward))
    model = warm_start(loaded, config, world_seed, mix)
    save_policy(model, policy_file(out), world=world, method="vaft", seed=world_seed)


class Asked(NamedTuple):
    """Requests with what a search needs to know of them."""

    request_id: Int[Tensor, " B"]
    request: Request
    eligible: Bool[Tensor, "B N"]


class Trained:
    """The trained policy on its world."""

    def __init__(self, out: Path, world: str, world_seed: int, reward: Sequence[str]) -> None:
        self.model: HHD = load_policy(policy_file(out))
        self.world: World = open_world(world, world_seed)
        self._reward = RewardMix.from_specs(list(reward))

    def drawn(self, seed: int, number: int) -> Int[Tensor, " B"]:
        """Return test requests, another choice for each seed; all if there are fewer."""
        pool = self.world.request_ids("test")
        return pool[uniform(seed, Purpose.EVALUATION, pool).argsort()[:number]]

    def asked(self, request_id: Int[Tensor, " B"], batch: int) -> list[Asked]:
        """Return requests in batches, with what a search needs to know."""
        return [
            Asked(ids, self.world.request(ids), self.world.eligible(ids))
            for ids in request_id.split(batch)
        ]

    def widths(self, *widths: int) -> tuple[int, ...]:
        """Return a width per level, the last again for deeper ones.

        None is above the number of prefixes that the catalogue has at its level.
        """
        tree = self.world.trie.tree
        wide = [*widths, *[widths[-1]] * tree.num_levels]
        return tuple(min(w, len(code) - 1) for w, code in zip(wide, tree.code[1:], strict=False))

    def reward(
        self, request_id: Int[Tensor, " B"], ad_id: Int[Tensor, "B K"]
    ) -> Float[Tensor, "B K"]:
        """Return the rankers' reward of ads; -inf for the padding, -1."""
        value = self._reward(self.world.outcome(request_id, ad_id))[0]
        return value.masked_fill(ad_id < 0, -torch.inf)


def recall(found: Int[Tensor, "B K"], wanted: Int[Tensor, "B k"]) -> Float[Tensor, " B"]:
    """Return the share of the wanted ads that are found; -1 stands for none."""
    real = wanted >= 0
    there = (wanted[:, :, None] == found[:, None]).any(-1) & real
    return there.sum(-1) / real.sum(-1).clamp_min(1)
