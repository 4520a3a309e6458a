"""Is a vector environment the same as single environments with the same seeds, step by step?

For any Gymnasium environments, not only those of this package.
Dims: B environments (rows), V actions.
"""

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.check.differences import (
    VectorMismatchError,
    compare,
    compare_infos,
    find_shared_memory,
    named,
    overwrite,
)

ChooseActions = Callable[[VectorEnv, Any, Mapping[str, Any], np.random.Generator], Any]


def check_vector_env(
    make_single: Callable[[], gymnasium.Env],
    make_vector: Callable[..., VectorEnv],
    num_envs: int | None = None,
    num_steps: int = 50,
    seed: int = 0,
    *,
    tolerance: float = 1e-6,
    choose_actions: ChooseActions | None = None,
    check_reset_mask: bool | None = None,
) -> int:
    """Compare a vector environment with single ones; return how many episodes ended.

    `gymnasium.vector.SyncVectorEnv` steps the single environments in the autoreset mode that
    `metadata["autoreset_mode"]` of the vector environment declares, so what Gymnasium does with
    seeds, ends, resets and infos is the reference. Checked, in this order:

    1. The spaces: single ones equal to those of the single environment, the others batched.
    2. `num_steps` steps from `reset(seed=seed)`, where row i has seed + i: observations (with
       shape and dtype, and inside the space), rewards, `terminated`, `truncated`, infos with their
       `_key` masks. Integers, booleans and text must be equal, floats up to `tolerance`.
       Then `reset()` without a seed, which goes on with each row's own stream.
    3. What was returned shares no memory with what is returned next, and keeps its values.
    4. The same again: equal seeds give equal trajectories, to the bit. Everything
       returned is overwritten meanwhile, which may change nothing.
    5. A list of seeds, in another order: rows do not depend on their place or neighbours.
    6. `reset(options={"reset_mask": mask})`, with and without seeds, in the middle of episodes.

    Rows that end are reset by `reset_mask` in the mode DISABLED, which is how Gymnasium has it.

    Args:
        make_single: Returns a single environment; called B times for each of the runs.
        make_vector: Returns the vector environment. Called with `num_envs=B` if it has a
            parameter of this name, with B if it needs an argument, otherwise with nothing.
        num_envs: B. Default 3, or what `make_vector` makes if it takes no number.
        num_steps: Steps of each run. Take enough for episodes to end: other autoreset modes and
            masks can't be told apart before (the returned number tells).
        seed: Of row 0; rows have seed + i.
        tolerance: Of floats, absolute and relative; NaN equals NaN.
        choose_actions: Called with the vector environment, its last observations and infos, and a
            `numpy` Generator; returns a batch of actions. Default `legal_actions`.
        check_reset_mask: Whether to do 6. Default: in the mode DISABLED only, as other vector
            environments need not know the option.

    Returns:
        The number of episodes that ended in the first run. If it is 0, 2 could not look at ends.

    Raises:
        VectorMismatchError: (an `AssertionError`) The first difference: the call, the row, the
            key, and both values.
        ValueError: `num_envs` is not what `make_vector` gives, or a mask allows no action.
    """
    vector = _make(make_vector, num_envs)
    try:
        if num_envs is not None and vector.num_envs != num_envs:
            raise ValueError(f"num_envs is {num_envs}, but make_vector gave {vector.num_envs}")
        mode = _declared_mode(vector)
        run = _Run(vector, make_single, mode, tolerance, choose_actions or legal_actions, num_steps)
        run.check_spaces()
        first, num_ended = run.play(seed, seed)
        again, _ = run.play(seed, seed, overwriting=True)
        for (call, one), (_, two) in zip(first, again, strict=True):
            compare(two, one, f"{call}, the second time with equal seeds", tolerance=0.0)
        order = np.roll(np.arange(vector.num_envs), 1)
        run.play([seed + int(i) for i in order], seed + 1)
        if check_reset_mask or (check_reset_mask is None and mode is AutoresetMode.DISABLED):
            run.play_masked(seed)
        return num_ended
    finally:
        vector.close()


def legal_actions(
    env: VectorEnv, observations: Any, infos: Mapping[str, Any], rng: np.random.Generator
) -> Any:
    """Return random actions that a mask allows; without a mask, a sample of the action space.

    The mask, [B, V], is looked for in `observations["action_mask"]`, `infos["action_mask"]` and
    `env.action_masks()`, in this order, and only where an action is one of V numbers.

    Raises:
        ValueError: A mask of another shape, or one that allows a row no action.
    """
    mask = observations.get("action_mask") if isinstance(observations, Mapping) else None
    if mask is None:
        mask = infos.get("action_mask")
    if mask is None and hasattr(env.unwrapped, "action_masks"):
        mask = env.unwrapped.action_masks()
    space = env.single_action_space
    if mask is None or not isinstance(space, Discrete):
        return sampled_actions(env, observations, infos, rng)
    mask = np.asarray(mask, dtype=np.bool_)
    if mask.shape != (env.num_envs, space.n):
        raise ValueError(f"action_mask must be {(env.num_envs, int(space.n))}, got {mask.shape}")
    if not mask.any(-1).all():
        raise ValueError(f"action_mask allows row {int(mask.any(-1).argmin())} no action")
    chosen = np.where(mask, rng.random(mask.shape), -1.0).argmax(-1) + space.start
    return chosen.astype(env.action_space.dtype)


def sampled_actions(
    env: VectorEnv, observations: Any, infos: Mapping[str, Any], rng: np.random.Generator
) -> Any:
    """Return a sample of the action space that no mask restricts."""
    env.action_space.seed(int(rng.integers(2**31)))
    return env.action_space.sample()


@dataclass
class _Run:
    """A vector environment and its reference, called alike."""

    vector: VectorEnv
    make_single: Callable[[], gymnasium.Env]
    mode: AutoresetMode
    tolerance: float
    choose: ChooseActions
    num_steps: int

    def check_spaces(self) -> None:
        """Compare the spaces with those of a single environment."""
        single, vector = self.make_single(), self.vector
        for kind in ("observation", "action"):
            space = getattr(single, f"{kind}_space")
            want = {f"single_{kind}_space": space}
            want[f"{kind}_space"] = batch_space(space, vector.num_envs)
            for name, expected in want.items():
                got = getattr(vector, name, None)
                if got != expected:
                    raise VectorMismatchError(f"{name} is {got}, expected {expected}")
        single.close()

    def play(
        self, seed: int | list[int], actions_seed: int, *, overwriting: bool = False
    ) -> tuple[list[tuple[str, Any]], int]:
        """Play from `reset(seed=seed)`; return the results by call, and how many episodes ended."""
        self._begin(overwriting)
        rng = np.random.default_rng(actions_seed)
        self._reset({"seed": seed})
        num_ended = 0
        for number in range(1, self.num_steps + 1):
            num_ended += self._step(rng, f"step {number}")
        self._reset({})
        self._step(rng, "the step after reset()")
        self._end()
        return self._results, num_ended

    def play_masked(self, seed: int) -> None:
        """Reset some rows at random times, every other time with seeds."""
        self._begin()
        rng = np.random.default_rng(seed)
        num_envs = self.vector.num_envs
        self._reset({"seed": seed})
        for number in range(1, min(self.num_steps, 12) + 1):
            self._step(rng, f"step {number}")
            mask = rng.random(num_envs) < 0.5
            mask[number % num_envs] = True
            self._reset({"seed": seed + 1000 + number} if number % 2 else {}, mask)
        self._end()

    def _begin(self, overwriting: bool = False) -> None:
        makers = [self.make_single] * self.vector.num_envs
        self._reference = SyncVectorEnv(makers, autoreset_mode=self.mode)
        self._overwriting = overwriting
        self._results: list[tuple[str, Any]] = []
        self._last: tuple[str, Any] | None = None
        self._observations: Any = None
        self._infos: dict[str, Any] = {}

    def _end(self) -> None:
        self._check_kept("the end")
        self._reference.close()

    def _reset(self, arguments: dict[str, Any], mask: NDArray[np.bool_] | None = None) -> None:
        """Reset both alike; no dictionary or mask is passed twice, as environments take them."""
        said = [f"{key}={value}" for key, value in arguments.items()]
        if mask is not None:
            said.append(f"options={{'reset_mask': {mask.tolist()}}}")
            arguments = arguments | {"options": {"reset_mask": mask}}
        call = f"reset({', '.join(said)})"
        want = self._reference.reset(**copy.deepcopy(arguments))
        got = self.vector.reset(**copy.deepcopy(arguments))
        before = self._infos.get("action_mask")
        self._compare(call, got, want)
        if mask is not None and before is not None:  # rows that go on keep theirs
            news = self._infos["action_mask"]
            self._infos = self._infos | {"action_mask": np.where(mask[:, None], news, before)}

    def _step(self, rng: np.random.Generator, call: str) -> int:
        """Step both alike; return how many episodes ended."""
        actions = self.choose(self.vector, self._observations, self._infos, rng)
        want = self._reference.step(copy.deepcopy(actions))
        got = self.vector.step(actions)
        self._compare(call, got, want)
        ended = want[2] | want[3]
        if self.mode is AutoresetMode.DISABLED and ended.any():
            self._reset({}, ended)
        return int(ended.sum())

    def _compare(self, call: str, got: tuple, want: tuple) -> None:
        if not isinstance(got, tuple) or len(got) != len(want):
            raise VectorMismatchError(f"{call} must return {len(want)} things, got {type(got)}")
        if self._overwriting:
            call = f"{call}, with all that earlier calls returned overwritten"
        expected = named(want)
        for name, left in named(got).items():
            if name != "infos":
                check_dtype = name != "reward"  # the interface leaves the width of rewards open
                path, right = f"{call}: {name}", expected[name]
                compare(left, right, path, self.tolerance, check_dtype=check_dtype)
        if got[0] not in self.vector.observation_space:
            raise VectorMismatchError(f"{call}: observation is not in the observation_space")
        compare_infos(got[-1], want[-1], f"{call}: infos", self.tolerance)
        if self._last is not None:
            before, last = self._last
            shared = find_shared_memory(last, got)
            if shared:
                raise VectorMismatchError(
                    f"{call} returned {shared[1]} in the memory of {shared[0]}, which {before} "
                    "had returned"
                )
        self._check_kept(call)
        kept = named(copy.deepcopy(got))
        self._observations, self._infos = kept["observation"], kept["infos"]
        self._results.append((call, kept))
        self._last = (call, got)
        if self._overwriting:
            overwrite(got)

    def _check_kept(self, call: str) -> None:
        """Raise if what the last call returned is no longer what it was."""
        if self._last is not None and not self._overwriting:
            before, last = self._last
            compare(named(last), self._results[-1][1], f"what {before} returned, after {call}", 0.0)


def _make(make_vector: Callable[..., VectorEnv], num_envs: int | None) -> VectorEnv:
    """Call the maker as its signature wants it."""
    parameters = inspect.signature(make_vector).parameters
    if "num_envs" in parameters:
        bound = parameters["num_envs"].default not in (inspect.Parameter.empty, 1)
        return make_vector() if bound and num_envs is None else make_vector(num_envs=num_envs or 3)
    needed = [p for p in parameters.values() if p.default is p.empty and p.kind in (0, 1)]
    return make_vector(num_envs or 3) if needed else make_vector()


def _declared_mode(vector: VectorEnv) -> AutoresetMode:
    """Return `metadata["autoreset_mode"]`."""
    mode = vector.metadata.get("autoreset_mode")
    if not isinstance(mode, AutoresetMode):
        raise VectorMismatchError(
            f"metadata['autoreset_mode'] must be a gymnasium.vector.AutoresetMode, got {mode!r}"
        )
    attribute = getattr(vector.unwrapped, "autoreset_mode", mode)
    if attribute != mode:
        raise VectorMismatchError(
            f"metadata['autoreset_mode'] is {mode}, but the attribute autoreset_mode {attribute}"
        )
    return mode
