"""Where a batch of requests spends its time: the pieces of an episode, timed one by one.

Dims: B requests, L levels.
"""

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.environment_play import draw_codes, make_environment, make_play
from benchmarks.environment_presets import VECTOR
from benchmarks.timing import median_s
from envs.choices import Choices
from simulators.world import World

NUM_CALLS = 9
PIECES_BATCH = 64
"""B whose pieces are timed on every catalogue."""
EPISODE = "episode"
PIECES = {
    "request": "requests: tokens, preference, popularity (`world.request`)",
    "eligible": "eligible ads (`world.eligible`)",
    "restrict": "their code tree (`trie.restrict`)",
    "choices": "masks, steps and the ad reached (`Choices`)",
    "outcome": "the rankers, their inputs and the outcome (`world.outcome`)",
    "copies": "observations copied, after the reset and every step",
}
"""Metric -> words; none is part of another."""
FEATURES = "features"
"""The rankers' inputs (`world.features`), a part of `outcome`."""


def piece_seconds(world: World, batch: int, seed: int) -> dict[str, float]:
    """Return median seconds of every piece for B requests, and of whole vector episodes.

    Args:
        world: With its rankers.
        batch: B.
        seed: Of requests and actions.
    """
    env = make_environment(VECTOR, world, batch, 0)
    play = make_play(VECTOR, env, world.spec.num_levels, seed)
    rng = np.random.default_rng(seed)
    observation, info = env.reset()
    ids = torch.from_numpy(info["request_id"])
    codes = []
    for _ in range(world.spec.num_levels):
        codes.append(draw_codes(observation["action_mask"], rng))
        observation, _, _, _, info = env.step(codes[-1])
    ads = torch.from_numpy(info["ad_id"])[:, None]
    eligible = world.eligible(ids)
    choices = Choices(world.trie, batch)

    def choose() -> None:
        choices.open(world.trie.restrict(eligible))
        for code in codes:
            choices.step(code)

    def copies() -> None:
        for _ in range(len(codes) + 1):
            {key: np.array(value) for key, value in observation.items()}

    def timed(call: Callable[[], object]) -> float:
        return median_s(call, NUM_CALLS)

    found = {
        "request": timed(lambda: world.request(ids)),
        "eligible": timed(lambda: world.eligible(ids)),
        "restrict": timed(lambda: world.trie.restrict(eligible)),
        "outcome": timed(lambda: world.outcome(ids, ads, exact=True)),
        "copies": timed(copies),
        FEATURES: timed(lambda: world.features(ids)),
    }
    found["choices"] = max(timed(choose) - found["restrict"], 0.0)
    played = [play() for _ in range(NUM_CALLS + 2)][2:]
    found[EPISODE] = float(np.median([p.reset_s + p.step_s for p in played]))
    return found
