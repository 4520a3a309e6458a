"""Where a batch of requests spends its time: the pieces of an episode, timed one by one.

Dims: B requests, L levels.
"""

import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.environment.play import draw_codes, make_environment, make_play
from benchmarks.environment.presets import VECTOR
from benchmarks.measure.timing import median_seconds, timed
from envs.choices import Choices
from envs.requests import Episodes
from simulators.world import World

NUM_CALLS = 9
PIECES_BATCH = 64
"""B whose pieces are timed on every catalogue."""
EPISODE, ENGINE, INPUTS = "episode", "engine", "features"
ROWS = {
    "request": ("requests", "tokens, preference, popularity: `world.request`"),
    "eligible": ("eligible ads", "`world.eligible`"),
    "restrict": ("code tree", "`trie.restrict`"),
    "choices": ("codes chosen", "the legal part of the tree as needed, masks, the ad: `Choices`"),
    "outcome": ("rankers", "with their inputs and the outcome: `world.outcome`"),
    INPUTS: ("of which inputs", "`world.features`"),
    "engine_rest": ("other rules", "`Episodes` less all of the above"),
    "copies": ("copies", "of observations, after the reset and every step"),
    "wrapper_rest": ("infos", "the vector environment less all of the above"),
    EPISODE: ("a whole episode", ""),
}
"""Metric -> a few words, and what is timed for it."""
PIECES = {name: words for name, (words, _) in ROWS.items() if name not in (INPUTS, EPISODE)}
"""Metric -> a few words; together they are the episode."""


def piece_seconds(world: World, batch: int, seed: int) -> dict[str, float]:
    """Return median seconds of every piece for B requests.

    Beside `PIECES`: `INPUTS` (`world.features`, a part of the rankers), `ENGINE` (`Episodes`
    alone) and `EPISODE` (the vector environment). The two rests are differences: negative where
    the environment does a piece in a quicker way than the call that is timed for it.
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

    def choose() -> float:
        legal = world.trie.restrict(eligible)
        started = time.perf_counter()
        choices.open(legal)
        for code in codes:
            choices.step(code)
        return time.perf_counter() - started

    def copies() -> None:
        for _ in range(len(codes) + 1):
            {key: np.array(value) for key, value in observation.items()}

    engine = Episodes(world, batch)
    engine.seed(np.arange(batch) + seed)

    def run_engine() -> float:
        draw_s, started = 0.0, time.perf_counter()
        engine.reset()
        for _ in codes:
            before = time.perf_counter()
            code = draw_codes(engine.legal_mask, rng)
            draw_s += time.perf_counter() - before
            engine.step(code)
        return time.perf_counter() - started - draw_s

    def run_episode() -> float:
        played = play()
        return played.reset_s + played.step_s

    runs: dict[str, Callable[[], float]] = {
        "request": timed(lambda: world.request(ids)),
        "eligible": timed(lambda: world.eligible(ids)),
        "restrict": timed(lambda: world.trie.restrict(eligible)),
        "choices": choose,
        "outcome": timed(lambda: world.outcome(ids, ads, exact=True)),
        "copies": timed(copies),
        INPUTS: timed(lambda: world.features(ids)),
        ENGINE: run_engine,
        EPISODE: run_episode,
    }
    found = median_seconds(runs, NUM_CALLS)
    parts = ("request", "eligible", "restrict", "choices", "outcome")
    found["engine_rest"] = found[ENGINE] - sum(found[name] for name in parts)
    found["wrapper_rest"] = found[EPISODE] - found[ENGINE] - found["copies"]
    return found
