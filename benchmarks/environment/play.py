"""Plays every interface of the environments with random legal actions, and times it.

Dims: B rows, L levels, V codes per level.
"""

import math
import operator
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from benchmarks.environment import presets as names
from benchmarks.environment.presets import EnvironmentPreset
from simulators.world import World

REQUEST_ID, DAY_ID = "envs:gpr_rl/AdRequest-v0", "envs:gpr_rl/AdDay-v0"


class Played(NamedTuple):
    """What episodes took: all rows, from reset to end."""

    num_choices: int = 0
    """Steps times rows; a row that has ended makes no choice."""
    reset_s: float = 0.0
    step_s: float = 0.0
    draw_s: float = 0.0
    """Drawing the actions, in neither of the others; 0 where the interface itself draws."""


PREPARED = 64
"""Episodes that make a repeat at B = 1, where many requests are prepared at once."""
LONG = 10
"""A first episode that is so many repeats long is all the warming up there is."""
Play = Callable[[], Played]
"""Plays one episode of every row."""


def draw_code(mask: NDArray[np.int8], rng: np.random.Generator) -> int:
    """Return a legal code, uniformly; `mask` is [V]."""
    legal = np.flatnonzero(mask)
    return int(legal[int(rng.random() * len(legal))])


def draw_codes(
    mask: NDArray[np.int8] | NDArray[np.bool_], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return a legal code per row, uniformly; `mask` is [B, V]."""
    key = 1.0 - rng.random(mask.shape, dtype=np.float32)  # in (0, 1]
    return (key * mask).argmax(axis=1)


def _play(
    reset: Callable[[], tuple[Any, int]],
    draw: Callable[[Any], Any],
    step: Callable[[Any], tuple[Any, int]],
) -> Play:
    """Return how episodes are played; `reset` and `step` return a state and how many rows go on."""

    def play() -> Played:
        started = time.perf_counter()
        state, num_open = reset()
        opened = time.perf_counter()
        num_choices, draw_s = 0, 0.0
        while num_open:
            num_choices += num_open
            before = time.perf_counter()
            action = draw(state)
            draw_s += time.perf_counter() - before
            state, num_open = step(action)
        step_s = time.perf_counter() - opened - draw_s
        return Played(num_choices, opened - started, step_s, draw_s)

    return play


def gymnasium_play(
    env: Any, num_rows: int, draw: Callable[[Any], Any], num_open: Callable[[Any], int]
) -> Play:
    """Return how a Gymnasium environment is played; `num_open` counts the rows that go on."""

    def step(action: Any) -> tuple[Any, int]:
        observation, _, terminated, truncated, _ = env.step(action)
        return observation, num_open(terminated | truncated)

    return _play(lambda: (env.reset()[0], num_rows), draw, step)


def torch_play(env: Any) -> Play:
    """Return how a TorchRL environment is played with `rand_action`, which is timed as the draw."""

    def opened(state: Any) -> tuple[Any, int]:
        return state, int((~state["done"]).sum())

    return _play(
        lambda: opened(env.reset()), env.rand_action, lambda state: opened(env.step(state)["next"])
    )


def rollout_play(env: Any, num_steps: int) -> Play:
    """Return how a TorchRL environment is played by `rollout` without a policy."""

    def play() -> Played:
        started = time.perf_counter()
        steps = env.rollout(num_steps)
        return Played(step_s=time.perf_counter() - started, num_choices=steps["action"].numel())

    return play


def make_play(method: str, env: Any, num_levels: int, seed: int) -> Play:
    """Seed an environment of `make_environment` and its actions; return how it is played."""
    rng = np.random.default_rng(seed)
    if method in names.TORCHES:
        env.set_seed(seed)
        torch.manual_seed(seed)
        return rollout_play(env, num_levels) if method == names.ROLLOUT else torch_play(env)
    env.reset(seed=seed)
    if method in names.SINGLES:
        return gymnasium_play(env, 1, lambda o: draw_code(o["action_mask"], rng), operator.not_)
    return gymnasium_play(
        env,
        env.num_envs,
        lambda o: draw_codes(o["action_mask"], rng),
        lambda ended: int((~ended).sum()),
    )


def make_environment(
    method: str, world: World, batch: int, day_requests: int, reward: Sequence[str] = ()
) -> Any:
    """Return the environment of an interface, one of `benchmarks.environment.presets.METHODS`.

    `batch` is B, 1 for the single environments; without `reward` it is `final_value`.
    """
    import envs

    is_day = method in names.DAYS
    name = DAY_ID if is_day else REQUEST_ID
    options: dict[str, Any] = {"world": world, "reward": list(reward)}
    if is_day:
        options["num_requests"] = day_requests
    if method in names.SINGLES:
        return gymnasium.make(name, **options)
    if method in names.TORCHES:
        made = envs.AdDayTorchEnv if is_day else envs.AdRequestTorchEnv
        return made(batch_size=[batch], **options)
    if method == names.SYNC:
        options["vectorization_mode"] = "sync"
        options["vector_kwargs"] = {"autoreset_mode": AutoresetMode.DISABLED}
    elif method not in names.METHODS:
        raise ValueError(f"no interface {method!r}: one of {', '.join(names.METHODS)}")
    return gymnasium.make_vec(name, num_envs=batch, **options)


class Timing(NamedTuple):
    """Figures of one configuration."""

    choices_per_s: list[float]
    """Of each repeat, without the draws; of requests with the resets, of days without."""
    draw_s: float
    """Median, per choice."""
    reset_s: float
    """Median, per reset of all rows."""


def warm_up(play: Play, sizes: EnvironmentPreset) -> int:
    """Play for about a repeat's length and return how many episodes make a repeat."""
    started = time.perf_counter()
    play()  # caches fill, tables are built
    if time.perf_counter() - started > LONG * sizes.repeat_s:
        return 1
    while time.perf_counter() - started < sizes.repeat_s:
        play()
    before = time.perf_counter()
    play()
    return max(1, math.ceil(sizes.repeat_s / max(time.perf_counter() - before, 1e-6)))


def time_plays(
    plays: dict[str, Play], sizes: EnvironmentPreset, *, with_reset: bool, least: int = 1
) -> dict[str, Timing]:
    """Time several plays in turn, so that they meet the same machine.

    `with_reset` says whether choices pay for the resets, `least` how many episodes a repeat has at
    least.
    """
    counts = {name: max(warm_up(play, sizes), least) for name, play in plays.items()}
    found: dict[str, list[Played]] = {name: [] for name in plays}
    started = time.perf_counter()
    for repeat in range(sizes.num_repeats):
        if repeat and time.perf_counter() - started > sizes.limit_s:
            break
        for name, play in plays.items():
            episodes = [play() for _ in range(counts[name])]
            found[name].append(Played(*map(sum, zip(*episodes, strict=True))))
    return {
        name: Timing(
            [p.num_choices / (p.step_s + with_reset * p.reset_s) for p in repeats],
            median(p.draw_s / p.num_choices for p in repeats),
            median(p.reset_s / counts[name] for p in repeats),
        )
        for name, repeats in found.items()
    }
