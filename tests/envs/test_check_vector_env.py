"""check_vector_env: accepts what is equal, and names what differs, one breakage at a time."""

import functools
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from envs import check_vector_env
from envs.check import legal_actions, sampled_actions
from envs.check.differences import VectorMismatchError, compare, compare_infos

MODES = list(AutoresetMode)


class Corridor(gymnasium.Env):
    """Walk right from a random place; the wall at 6 ends the episode, action 0 is illegal at 0."""

    observation_space = Box(-1, 9, (2,), np.float32)
    action_space = Discrete(3, start=-1)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        super().reset(seed=seed)
        self.at = int(self.np_random.integers(4))
        self.luck = float(self.np_random.random())
        return self._observation(), {"action_mask": self._mask()}

    def step(self, action: int) -> tuple:
        assert self._mask()[int(action) + 1]
        self.at = max(self.at + int(action), 0)
        info: dict[str, Any] = {"action_mask": self._mask()}
        if self.at >= 6:
            info["prize"] = self.luck
            info["parts"] = {"place": self.at}
        return self._observation(), self.luck, self.at >= 6, False, info

    def _observation(self) -> np.ndarray:
        return np.array([self.at, self.luck], dtype=np.float32)

    def _mask(self) -> np.ndarray:
        return np.array([self.at > 0, self.at % 2, True], dtype=np.int8)


def cart_pole() -> gymnasium.Env:
    return gymnasium.make("CartPole-v1", max_episode_steps=15)


class Broken(SyncVectorEnv):
    """A vector environment of corridors with one thing wrong."""

    def __init__(self, num_envs: int, mode: AutoresetMode = AutoresetMode.NEXT_STEP, **kwargs):
        super().__init__([Corridor] * num_envs, autoreset_mode=mode, **kwargs)

    def change(self, result: tuple) -> tuple:
        return result

    def reset(self, **kwargs: Any) -> tuple:
        return self.change(super().reset(**kwargs))

    def step(self, actions: Any) -> tuple:
        return self.change(super().step(actions))


class SameSeeds(Broken):
    def reset(self, *, seed: Any = None, options: dict | None = None) -> tuple:
        seed = [seed] * self.num_envs if isinstance(seed, int) else seed
        return super().reset(seed=seed, options=options)


class ListIgnored(Broken):
    def reset(self, *, seed: Any = None, options: dict | None = None) -> tuple:
        return super().reset(seed=seed[0] if isinstance(seed, list) else seed, options=options)


class SeededAnew(Broken):
    def reset(self, *, seed: Any = None, options: dict | None = None) -> tuple:
        return super().reset(seed=0 if seed is None else seed, options=options)


class MaskIgnored(Broken):
    def reset(self, *, seed: Any = None, options: dict | None = None) -> tuple:
        return super().reset(seed=seed)


class NotSeeded(Broken):
    """Goes on with its streams where it should start anew, after the first time."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        self.begun = False

    def reset(self, *, seed: Any = None, options: dict | None = None) -> tuple:
        if self.begun and seed is not None:
            seed = None
        self.begun = True
        return super().reset(seed=seed, options=options)


class WrongReward(Broken):
    def change(self, result: tuple) -> tuple:
        if len(result) == 5:
            result[1][1] += 1e-3
        return result


class WrongEnd(Broken):
    def change(self, result: tuple) -> tuple:
        if len(result) == 5:
            result = (*result[:2], result[3], result[2], result[4])
        return result


class WrongActionMask(Broken):
    def change(self, result: tuple) -> tuple:
        result[-1]["action_mask"][2, 1] ^= 1
        return result


class NoKeyMask(Broken):
    def change(self, result: tuple) -> tuple:
        result[-1].pop("_prize", None)
        return result


class WrongKeyMask(Broken):
    def change(self, result: tuple) -> tuple:
        if "_prize" in result[-1]:
            result[-1]["_prize"][:] = True
        return result


class NestedKeyMissing(Broken):
    def change(self, result: tuple) -> tuple:
        result[-1].get("parts", {}).pop("_place", None)
        return result


class WrongInfo(Broken):
    def change(self, result: tuple) -> tuple:
        if "parts" in result[-1]:
            result[-1]["parts"]["place"] += 1
        return result


class MoreInfo(Broken):
    def change(self, result: tuple) -> tuple:
        result[-1]["more"] = np.zeros(self.num_envs)
        return result


class WrongDtype(Broken):
    def change(self, result: tuple) -> tuple:
        return (result[0].astype(np.float64), *result[1:])


class WrongShape(Broken):
    def change(self, result: tuple) -> tuple:
        return (result[0][:, :1], *result[1:])


class InfosKept(Broken):
    """Gives the same array of an info again and again."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        self.kept = np.zeros((num_envs, 3), dtype=np.int8)

    def change(self, result: tuple) -> tuple:
        self.kept[:] = result[-1]["action_mask"]
        result[-1]["action_mask"] = self.kept
        return result


class LooksBack(Broken):
    """Writing into an observation changes the environment, although no array is given twice."""

    def reset(self, **kwargs: Any) -> tuple:
        self.shown, infos = super().reset(**kwargs)
        return self.shown, infos

    def step(self, actions: Any) -> tuple:
        for env, row in zip(self.envs, self.shown, strict=True):
            env.luck = float(row[1])
        self.shown, *rest = super().step(actions)
        return self.shown, *rest


class WritesBack(Broken):
    """Writes into rewards that it gave before; those that it gives are new."""

    last = None

    def step(self, actions: Any) -> tuple:
        if self.last is not None:
            self.last[2] = 7.0
        result = super().step(actions)
        self.last = result[1]
        return result


class Noisy(Broken):
    """Rewards differ from run to run, by less than the tolerance."""

    noise = 0.0

    def reset(self, **kwargs: Any) -> tuple:
        self.noise += 1e-9
        return super().reset(**kwargs)

    def change(self, result: tuple) -> tuple:
        if len(result) == 5:
            result[1][:] += self.noise
        return result


class RowsMeet(Broken):
    """What the first row does adds to the reward of its neighbour, but only for some seeds."""

    def reset(self, *, seed: Any = None, options: dict | None = None) -> tuple:
        self.is_list = isinstance(seed, list)
        return super().reset(seed=seed, options=options)

    def change(self, result: tuple) -> tuple:
        if self.is_list and len(result) == 5:
            result[1][1] += result[1][0]
        return result


class Undeclared(Broken):
    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        del self.metadata["autoreset_mode"]


class WrongSpace(Broken):
    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        self.single_observation_space = Box(-1, 8, (2,), np.float32)


class Outgrown(Broken):
    """Declares a batched space of its own."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        self.action_space = Discrete(3)


def declared(mode: AutoresetMode, really: AutoresetMode) -> Callable[[int], VectorEnv]:
    def make(num_envs: int) -> VectorEnv:
        env = Broken(num_envs, really)
        env.metadata["autoreset_mode"] = mode
        env.__dict__["autoreset_mode"] = mode
        env.step = functools.partial(step_as, env, mode, really)  # type: ignore[method-assign]
        return env

    return make


def step_as(env: Broken, mode: AutoresetMode, really: AutoresetMode, actions: Any) -> tuple:
    env.autoreset_mode = really
    try:
        return SyncVectorEnv.step(env, actions)
    finally:
        env.autoreset_mode = mode


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [cart_pole, Corridor])
def test_what_is_equal_passes(mode: AutoresetMode, make: Callable[[], gymnasium.Env]) -> None:
    def vector(num_envs: int) -> VectorEnv:
        return SyncVectorEnv([make] * num_envs, autoreset_mode=mode)

    assert check_vector_env(make, vector, 4, 40, seed=7, check_reset_mask=True) >= 4


def test_processes_pass() -> None:
    assert check_vector_env(cart_pole, lambda: AsyncVectorEnv([cart_pole] * 2), num_steps=20) > 0


def test_the_maker_is_called_as_its_signature_wants() -> None:
    seen = []

    def by_name(*, num_envs: int = 1) -> VectorEnv:
        seen.append(num_envs)
        return Broken(num_envs)

    def short(maker: Callable, num_envs: int | None = None) -> None:
        check_vector_env(Corridor, maker, num_envs, num_steps=2)

    short(by_name)
    short(by_name, 5)
    short(functools.partial(by_name, num_envs=2))
    short(lambda n: by_name(num_envs=n), 4)
    short(lambda: by_name(num_envs=6))
    assert seen == [3, 5, 2, 4, 6]
    with pytest.raises(ValueError, match="num_envs is 4, but make_vector gave 6"):
        short(lambda: by_name(num_envs=6), 4)


def test_the_number_of_ended_episodes_is_returned() -> None:
    assert check_vector_env(Corridor, Broken, num_steps=1) == 0


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (SameSeeds, r"^reset\(seed=0\): observation, row 1 at \(0,\): the vector environment gave"),
        (ListIgnored, r"^reset\(seed=\[2, 0, 1\]\): observation, row 1"),
        (SeededAnew, r"^reset\(\): observation, row 0"),
        (NotSeeded, r"^reset\(seed=0\), with all .* overwritten: observation, row 0"),
        (WrongReward, r"^step 1: reward, row 1: the vector environment gave 0.9\d+, single"),
        (WrongEnd, r"^step \d+: terminated, row \d: the vector environment gave False, .* True"),
        (WrongActionMask, r"^reset\(seed=0\): infos\['action_mask'\], row 2 at \(1,\)"),
        (NoKeyMask, r"^step \d+: infos has no key '_prize'; it has \['_action_mask', "),
        (WrongKeyMask, r"^step \d+: infos\['_prize'\], row \d: .* gave True, .* gave False"),
        (NestedKeyMissing, r"^step \d+: infos\['parts'\] has no key '_place'"),
        (WrongInfo, r"infos\['parts'\]\['place'\], row \d: .* gave 7, single environments gave 6"),
        (MoreInfo, r"^reset\(seed=0\): infos has a key 'more' that single environments do not"),
        (WrongDtype, r"observation has dtype float64, expected float32"),
        (WrongShape, r"observation has shape \(3, 1\), expected \(3, 2\)"),
        (InfosKept, r"^step 1 returned infos\['action_mask'\] in the memory of infos\['action_"),
        (functools.partial(Broken, copy=False), r"^step 1 returned observation in the memory of"),
        (LooksBack, r"^step 1, with all that earlier calls returned overwritten: observation"),
        (
            WritesBack,
            r"^what step 1 returned, after step 2\['reward'\], row 2: .* gave 7.0, single",
        ),
        (Noisy, r"^step 1, the second time with equal seeds\['reward'\], row 0: "),
        (RowsMeet, r"^step 1: reward, row 1"),
        (Undeclared, r"metadata\['autoreset_mode'\] must be a gymnasium.* got None"),
        (WrongSpace, r"^single_observation_space is Box\(-1.0, 8.0"),
        (Outgrown, r"^action_space is Discrete\(3\), expected MultiDiscrete"),
    ],
)
def test_what_differs_is_named(broken: Callable[[int], VectorEnv], message: str) -> None:
    with pytest.raises(VectorMismatchError, match=message):
        check_vector_env(Corridor, lambda n: broken(n), num_steps=30)


def test_an_ignored_reset_mask_is_named() -> None:
    def vector(num_envs: int) -> VectorEnv:
        return MaskIgnored(num_envs, AutoresetMode.DISABLED)

    with pytest.raises(VectorMismatchError, match=r"reset_mask': \[.*\]}\): observation, row"):
        check_vector_env(Corridor, vector, num_steps=30)
    check_vector_env(Corridor, MaskIgnored, num_steps=30)
    with pytest.raises(VectorMismatchError, match="reset_mask"):
        check_vector_env(Corridor, MaskIgnored, num_steps=30, check_reset_mask=True)


@pytest.mark.parametrize(
    ("mode", "really", "message"),
    [
        (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, r"^step \d+: observation, row \d at"),
        (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, r"^step \d+: observation, row \d at"),
    ],
)
def test_another_autoreset_mode_than_declared_is_named(
    mode: AutoresetMode, really: AutoresetMode, message: str
) -> None:
    with pytest.raises(VectorMismatchError, match=message):
        check_vector_env(Corridor, declared(mode, really), num_steps=30)


class Outside(Corridor):
    observation_space = Box(-1, 3, (2,), np.float32)


def test_observations_outside_the_space_are_named() -> None:
    def vector(num_envs: int) -> VectorEnv:
        return SyncVectorEnv([Outside] * num_envs)

    with pytest.raises(VectorMismatchError, match=r"^step \d: observation is not in the observ"):
        check_vector_env(Outside, vector)


def test_infos_are_compared_where_their_masks_are_true() -> None:
    mask = np.array([False, True, True])
    want = {"prize": np.array([0.0, np.nan, 2.0]), "_prize": mask}
    compare_infos({"prize": np.array([9.0, np.nan, 2.0 + 1e-7]), "_prize": mask}, want, "x", 1e-6)
    with pytest.raises(
        VectorMismatchError, match=r"^x\['prize'\], row 2: .* gave 3.0, .* gave 2.0"
    ):
        compare_infos({"prize": np.array([0.0, np.nan, 3.0]), "_prize": mask}, want, "x", 1e-6)
    with pytest.raises(VectorMismatchError, match=r"^x must be a dictionary, got list"):
        compare_infos([{}], want, "x", 1e-6)


def test_nested_batches_are_compared() -> None:
    want = {"a": (np.zeros(2), [np.array(["x", "y"])]), "b": np.array([None, {"c": 1}], object)}
    same = {"a": (np.zeros(2), [np.array(["x", "y"])]), "b": np.array([None, {"c": 1}], object)}
    compare(same, want, "z", 0.0)
    for got, message in (
        (want | {"a": (np.zeros(2),)}, r"^z\['a'\] must have 2 entries"),
        (want | {"a": (np.zeros(2), [np.array(["x", "w"])])}, r"^z\['a'\]\[1\]\[0\], row 1: .* w,"),
        (want | {"b": np.array([None, {"c": 2}], object)}, r"^z\['b'\], row 1\['c'\]: .* gave 2,"),
        (want | {"b": np.array([None, None], object)}, r"^z\['b'\], row 1 must be a dictionary"),
    ):
        with pytest.raises(VectorMismatchError, match=message):
            compare(got, want, "z", 0.0)


def test_two_declarations_must_agree() -> None:
    env = Broken(2)
    env.metadata["autoreset_mode"] = AutoresetMode.SAME_STEP
    with pytest.raises(VectorMismatchError, match=r"is AutoresetMode.SAME_STEP, but the attribute"):
        check_vector_env(Corridor, lambda: env)


class Relaxed(Corridor):
    """A corridor where every action is allowed."""

    def _mask(self) -> np.ndarray:
        return np.ones(3, dtype=np.int8)


def test_actions_respect_masks_unless_told_otherwise() -> None:
    vector, rng = Broken(3), np.random.default_rng(0)
    observations, infos = vector.reset(seed=0)
    allowed = infos["action_mask"].astype(bool)
    drawn = np.stack([legal_actions(vector, observations, infos, rng) for _ in range(60)])
    for row in range(3):
        assert set(drawn[:, row]) == set(np.flatnonzero(allowed[row]) - 1)
    free = np.stack([sampled_actions(vector, observations, infos, rng) for _ in range(60)])
    assert set(free[:, 0]) == {-1, 0, 1}
    # An observation's own mask comes first: it is there for every row after a partial reset.
    seen = {"action_mask": np.eye(3)}
    assert legal_actions(vector, seen, infos, rng).tolist() == [-1, 0, 1]
    with pytest.raises(AssertionError):
        check_vector_env(Corridor, Broken, num_steps=30, choose_actions=sampled_actions)

    def relaxed(num_envs: int) -> VectorEnv:
        return SyncVectorEnv([Relaxed] * num_envs)

    check_vector_env(Relaxed, relaxed, num_steps=30, choose_actions=sampled_actions)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((3, 2)), r"action_mask must be \(3, 3\), got \(3, 2\)"),
        (np.array([[1, 0, 0], [0, 0, 0], [1, 1, 1]]), "action_mask allows row 1 no action"),
    ],
)
def test_masks_that_can_not_be_used_are_named(mask: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        legal_actions(Broken(3), None, {"action_mask": mask}, np.random.default_rng(0))
