"""The vector environment against Gymnasium's SyncVectorEnv of singles, to the last zero."""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space, create_empty_array
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs import AdRequestEnv, AdRequestVectorEnv, check_vector_env
from envs.check import sampled_actions
from envs.choices import IllegalActionError
from envs.engine import Engine
from envs.spaces import observation_space
from envs.vector import VectorEnv
from gpr_rl.schema import InputSpec
from simulators.rewards import RewardMix
from simulators.world import World

ID = "envs:gpr_rl/AdRequest-v0"
MODES = list(AutoresetMode)
DISABLED, SAME_STEP = AutoresetMode.DISABLED, AutoresetMode.SAME_STEP


def assert_same(got: Any, want: Any, path: str = "") -> None:
    """The same types, dtypes, shapes, keys and values; also where an info's mask is False."""
    assert type(got) is type(want), path
    if isinstance(want, dict):
        assert set(got) == set(want), path
        for key in want:
            assert_same(got[key], want[key], f"{path}/{key}")
    elif isinstance(want, tuple):
        for number, (left, right) in enumerate(zip(got, want, strict=True)):
            assert_same(left, right, f"{path}/{number}")
    elif isinstance(want, np.ndarray) and want.dtype == np.object_:
        assert_same(tuple(got), tuple(want), path)
    elif isinstance(want, np.ndarray):
        assert (got.dtype, got.shape) == (want.dtype, want.shape), path
        rtol = 1e-6 if want.dtype.kind == "f" else 0
        np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol, err_msg=path)
    else:
        assert got is want or got == want, path


def legal(env: VectorEnv, rng: np.random.Generator) -> np.ndarray:
    masks = env.action_masks()
    return np.where(masks, rng.random(masks.shape), -1).argmax(1)


def illegal(env: VectorEnv) -> np.ndarray:
    """For every row an illegal code, or a legal one where there is none."""
    return (~env.action_masks()).argmax(1)


def singles(
    world: World, num_envs: int, mode: AutoresetMode, max_steps: int | None = None
) -> SyncVectorEnv:
    def make() -> gymnasium.Env:
        return gymnasium.make(ID, world=world, max_episode_steps=max_steps)

    return SyncVectorEnv([make] * num_envs, autoreset_mode=mode)


def test_make_vec_gives_the_native_one(world: World) -> None:
    env = gymnasium.make_vec(ID, num_envs=7, world="tiny")
    assert type(env) is AdRequestVectorEnv
    assert env.num_envs == 7
    assert env.metadata["autoreset_mode"] is env.autoreset_mode is DISABLED
    single = AdRequestEnv(world)
    assert env.single_observation_space == single.observation_space
    assert env.single_action_space == single.action_space
    assert env.observation_space == batch_space(single.observation_space, 7)
    assert env.action_space == batch_space(single.action_space, 7)
    observations, _ = env.reset(seed=0)
    assert observations in env.observation_space
    assert type(gymnasium.make_vec(env.spec).unwrapped) is AdRequestVectorEnv
    env.close()
    assert env.closed


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("max_steps", [None, 2])
def test_it_is_laid_out_like_singles(
    world: World, mode: AutoresetMode, max_steps: int | None
) -> None:
    num_envs = 5
    env = AdRequestVectorEnv(num_envs, world, autoreset_mode=mode, max_episode_steps=max_steps)
    reference = singles(world, num_envs, mode, max_steps)
    rng = np.random.default_rng(0)
    assert_same(env.reset(seed=3), reference.reset(seed=3))
    num_illegal = 0
    for _ in range(14):
        actions = np.where(rng.random(num_envs) < 0.85, legal(env, rng), illegal(env))
        got, want = env.step(actions), reference.step(actions)
        assert_same(got, want)
        num_illegal += int(got[-1]["illegal"].sum())
        done = got[2] | got[3]
        if mode is DISABLED and done.any():
            masks = [{"reset_mask": done.copy()} for _ in range(2)]
            assert_same(env.reset(options=masks[0]), reference.reset(options=masks[1]))
            assert "reset_mask" in masks[0]  # a user's dictionary stays as it is
    assert num_illegal or mode is SAME_STEP  # the last info is in final_info there


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("choose", [None, sampled_actions])
def test_check_vector_env_passes(
    world: World, mode: AutoresetMode, choose: Callable | None
) -> None:
    ended = check_vector_env(
        lambda: AdRequestEnv(world),
        lambda num_envs: AdRequestVectorEnv(num_envs, world, autoreset_mode=mode),
        num_steps=14,
        choose_actions=choose,
        check_reset_mask=True,
    )
    assert ended >= 8


def test_check_vector_env_passes_by_id() -> None:
    check_vector_env(
        lambda: gymnasium.make(ID, world="tiny", max_episode_steps=2),
        lambda: gymnasium.make_vec(ID, num_envs=4, world="tiny", max_episode_steps=2),
        num_steps=8,
    )


def test_singles_can_be_vectorised_by_gymnasium(world: World) -> None:
    def make() -> gymnasium.Env:
        return AdRequestEnv("tiny")

    check_vector_env(make, lambda n: SyncVectorEnv([make] * n), num_steps=8)
    check_vector_env(make, lambda: AsyncVectorEnv([make] * 2), num_steps=6)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.lists(st.none() | st.integers(0, 2**70), min_size=3, max_size=3),
            st.lists(st.booleans(), min_size=3, max_size=3).filter(any),
            st.integers(0, 2**30),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_any_order_of_calls_gives_what_singles_give(world: World, calls: list) -> None:
    env, reference = AdRequestVectorEnv(3, world), singles(world, 3, DISABLED)
    assert_same(env.reset(seed=1), reference.reset(seed=1))
    for is_reset, seeds, mask, number in calls:
        if is_reset:
            options = [{"reset_mask": np.array(mask)} for _ in range(2)]
            got = env.reset(seed=seeds, options=options[0])
            assert_same(got, reference.reset(seed=seeds, options=options[1]))
        else:
            actions = legal(env, np.random.default_rng(number))
            got = env.step(actions)
            assert_same(got, reference.step(actions))
            done = got[2] | got[3]
            if done.any():
                options = [{"reset_mask": done.copy()} for _ in range(2)]
                assert_same(env.reset(options=options[0]), reference.reset(options=options[1]))


def test_a_row_depends_on_its_seed_alone(world: World) -> None:
    wide, narrow = AdRequestVectorEnv(9, world), AdRequestVectorEnv(2, world)
    seen, _ = wide.reset(seed=40)
    also_seen, _ = narrow.reset(seed=[47, 41])
    for _ in range(3):
        for key in seen:
            np.testing.assert_array_equal(seen[key][[7, 1]], also_seen[key])
        actions = seen["action_mask"].argmax(1)
        seen, reward, *_ = wide.step(actions)
        also_seen, also_reward, *_ = narrow.step(actions[[7, 1]])
        np.testing.assert_allclose(reward[[7, 1]], also_reward, rtol=1e-6)
    assert (reward > 0).all()


def test_unseeded_rows_are_seeded_by_chance_once(world: World) -> None:
    one, two = AdRequestVectorEnv(4, world), AdRequestVectorEnv(4, world)
    drawn = [env.reset()[1]["request_id"] for env in (one, two)]
    assert len(set(np.concatenate(drawn))) > 2
    # A seed for some rows leaves the streams of the others where they are.
    env = AdRequestVectorEnv(3, world)
    ids = [env.reset(seed=[5, None, 6])[1]["request_id"], env.reset()[1]["request_id"]]
    again = [env.reset(seed=[5, None, 6])[1]["request_id"], env.reset()[1]["request_id"]]
    for one_time, other_time in zip(ids, again, strict=True):
        assert one_time[[0, 2]].tolist() == other_time[[0, 2]].tolist()
    assert [ids[0][1], ids[1][1]] != [again[0][1], again[1][1]]


@pytest.mark.parametrize(
    "seed", [7, np.int64(7), [7, 8, 9], (7, 8, 9), np.arange(7, 10), [7, 2**63 + 8, 9]]
)
def test_seeds_may_be_given_in_any_form(world: World, seed: Any) -> None:
    want = [AdRequestEnv(world).reset(seed=7 + row)[1]["request_id"] for row in range(3)]
    assert AdRequestVectorEnv(3, world).reset(seed=seed)[1]["request_id"].tolist() == want


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": [1, 2]}, ValueError, r"seed must have 3 entries, one per row, got \(2,\)"),
        ({"seed": -1}, ValueError, "seeds must be non-negative, got -1"),
        ({"seed": [1, 2, -3]}, ValueError, r"non-negative, got \[1, 2, -3\]"),
        ({"seed": [1, 2, 0.5]}, ValueError, r"seeds must be integers, got \[1, 2, 0.5\]"),
        ({"seed": 1.5}, ValueError, "seed must be an integer, got 1.5"),
        ({"options": {"reset_mask": [True] * 3}}, TypeError, "numpy array of bool, got list"),
        ({"options": {"reset_mask": np.ones(3)}}, TypeError, "numpy array of bool, got float64"),
        ({"options": {"reset_mask": np.ones(2, bool)}}, ValueError, r"\(3,\), got \(2,\)"),
        ({"options": {"reset_mask": np.zeros(3, bool)}}, ValueError, "at least one row"),
        ({"options": {"request_id": 10**9}}, ValueError, r"request_id must lie in \[0, \d+\)"),
        ({"options": {"request": 7}}, ValueError, "options may hold"),
    ],
)
def test_bad_resets_are_named(
    world: World, arguments: dict, error: type[Exception], message: str
) -> None:
    env = AdRequestVectorEnv(3, world)
    env.reset(seed=0)
    with pytest.raises(error, match=message):
        env.reset(**arguments)


def test_bad_arguments_are_named(world: World) -> None:
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        AdRequestVectorEnv(0, world)
    with pytest.raises(ValueError, match="max_episode_steps must be at least 1, got 0"):
        AdRequestVectorEnv(2, world, max_episode_steps=0)
    with pytest.raises(ValueError, match="must be one of NEXT_STEP, SAME_STEP, DISABLED, got 'x'"):
        AdRequestVectorEnv(2, world, autoreset_mode="x")
    for name in ("same_step", "SameStep", SAME_STEP):
        assert AdRequestVectorEnv(1, world, autoreset_mode=name).autoreset_mode is SAME_STEP


def test_requests_can_be_picked(world: World) -> None:
    env = AdRequestVectorEnv(3, world)
    ids = world.request_ids("test")[:3].numpy()
    assert env.reset(options={"request_id": ids})[1]["request_id"].tolist() == ids.tolist()
    got = env.reset(options={"request_id": int(ids[1])})[1]["request_id"]
    assert got.tolist() == [ids[1]] * 3
    mask = np.array([True, False, True])
    _, infos = env.reset(options={"request_id": ids, "reset_mask": mask})
    assert infos["request_id"].tolist() == [ids[0], 0, ids[2]]
    assert infos["_request_id"].tolist() == mask.tolist()


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    "actions", [np.zeros(2, np.int64), np.zeros(3), np.ones(3, bool), 0, [0, None, 1]]
)
def test_bad_actions_are_named(world: World, actions: Any) -> None:
    env = AdRequestVectorEnv(3, world)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must be integers of shape \(3,\), got"):
        env.step(actions)
    with pytest.raises(ValueError, match=r"integer in \[0, 16\), got 16"):
        env.step(np.array([0, 16, 0]))


def test_nothing_works_before_the_first_reset_of_all_rows(world: World) -> None:
    env = AdRequestVectorEnv(2, world)
    calls: list[Callable] = [
        env.action_masks,
        env.eligible_ads,
        lambda: env.step(np.zeros(2, np.int64)),
        lambda: env.reset(options={"reset_mask": np.array([True, False])}),
    ]
    for call in calls:
        with pytest.raises(ResetNeeded, match="no episode has begun"):
            call()
    env.reset(options={"reset_mask": np.ones(2, np.bool_)})


def end_one_row(env: VectorEnv) -> tuple[int, tuple]:
    """Step legally until some row has an illegal code, and let that row alone choose it."""
    env.reset(seed=0)
    while env.action_masks().all():
        env.step(env.action_masks().argmax(1))
    row = int((~env.action_masks()).any(1).argmax())
    actions = env.action_masks().argmax(1)
    actions[row] = illegal(env)[row]
    return row, env.step(actions)


def test_a_row_that_ended_stays_where_it_is(world: World) -> None:
    env = AdRequestVectorEnv(4, world, max_episode_steps=3)
    row, (before, reward, terminated, truncated, infos) = end_one_row(env)
    others = np.arange(4) != row
    assert reward[row] == -1.0
    assert terminated.tolist() == (~others).tolist()
    assert not truncated.any()
    assert infos["_ad_id"].tolist() == infos["_components"].tolist() == (~others).tolist()
    assert infos["ad_id"].tolist() == np.where(others, 0, -1).tolist()
    while not terminated.all():
        after, reward, terminated, truncated, infos = env.step(env.action_masks().argmax(1))
        for key in before:
            np.testing.assert_array_equal(after[key][row], before[key][row])
        assert (reward[row], terminated[row]) == (0.0, True)
        if "ad_id" in infos:
            assert infos["_ad_id"].tolist() == others.tolist()
    assert (reward[others] > 0).all()
    assert truncated.tolist() == others.tolist()  # its own clock stood still
    with pytest.raises(ResetNeeded, match="all episodes are over"):
        env.step(env.action_masks().argmax(1))


def test_a_strict_environment_refuses_illegal_codes_and_steps_after_the_end(world: World) -> None:
    env = AdRequestVectorEnv(4, world, strict=True, max_episode_steps=2)
    with pytest.raises(IllegalActionError, match=r"is illegal in request \d+"):
        end_one_row(env)
    env.reset()
    env.step(env.action_masks().argmax(1))
    env.reset(options={"reset_mask": np.array([True, True, False, True])})
    *_, truncated, _ = env.step(env.action_masks().argmax(1))
    assert truncated.tolist() == [False, False, True, False]
    with pytest.raises(ResetNeeded, match=r"the episode of row 2 is over: call reset\(options"):
        env.step(env.action_masks().argmax(1))


def test_masks_and_ads_are_copies_of_what_singles_say(world: World) -> None:
    env = AdRequestVectorEnv(3, world)
    observations, infos = env.reset(seed=11)
    for row in range(3):
        single = AdRequestEnv(world)
        single.reset(seed=11 + row)
        np.testing.assert_array_equal(env.action_masks()[row], single.action_masks())
        np.testing.assert_array_equal(env.eligible_ads()[row], single.eligible_ads())
    assert env.action_masks().dtype == env.eligible_ads().dtype == np.bool_
    for call in (env.action_masks, env.eligible_ads):
        call()[:] = False
        assert call().any()
    assert not np.shares_memory(observations["action_mask"], infos["action_mask"])


class Rings(Engine):
    """An engine of days: every second step ends a request, the sixth the day, by truncation."""

    legal_mask: Any = None

    def __init__(self, num_rows: int) -> None:
        self.world: Any = SimpleNamespace(
            spec=InputSpec(
                num_levels=2,
                num_codes=3,
                user_cardinalities=(2,),
                context_cardinalities=(2,),
                max_tokens=4,
            )
        )
        self.num_rows, self.strict = num_rows, False
        self.reward = RewardMix.of(None)
        self.legal_mask = np.ones((num_rows, 3), dtype=np.bool_)
        self.ads = np.ones((num_rows, 4), dtype=np.bool_)
        self.terminated = np.zeros(num_rows, dtype=np.bool_)
        self.reported = self.terminated.copy()
        self.at, self.day, self.origin = np.zeros((3, num_rows), dtype=np.int64)

    @property
    def truncated(self) -> np.ndarray:
        return self.at == 6

    @property
    def awaiting(self) -> np.ndarray:
        return ~self.truncated

    def seed(self, seed: np.ndarray, rows: np.ndarray | None = None) -> None:
        rows = self._rows(rows)
        self.origin[rows] = seed[rows]
        self.day[rows] = 0

    def reset(self, rows: np.ndarray | None = None, options: dict | None = None) -> None:
        rows = self._rows(rows)
        self.day[rows] += 1
        self.at[rows] = (self.origin * self.day)[rows] % 5
        self.reported = self.reported & ~rows

    def step(self, action: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        acting = self._rows(rows) & self.awaiting
        self.at += acting
        self.reported = np.where(self._rows(rows), acting & (self.at % 2 == 0), self.reported)
        return np.where(acting, action + self.at, 0).astype(np.float32)

    def shown(self) -> dict[str, np.ndarray]:
        raise AssertionError("`observation` is all that an adapter asks for")

    def observation(self) -> dict[str, np.ndarray]:
        space = observation_space(self.world.spec)
        entries: Any = create_empty_array(space, self.num_rows, fn=np.zeros)
        del entries["action_mask"]
        return entries | {"level": self.at % 2}

    def info(self) -> dict[str, Any]:
        return {"request_id": self.at // 2, "is_open": self.at % 2 == 1}

    def report(self) -> dict[str, Any]:
        revenue = (self.at / 10).astype(np.float32)
        return {"ad_id": self.at + 5, "components": {"revenue": revenue, "gmv": revenue * np.nan}}

    def eligible(self) -> np.ndarray:
        return self.ads

    def view(self, row: int) -> str:
        return f"ring of row {row}"

    def _rows(self, rows: np.ndarray | None) -> np.ndarray:
        return np.ones(self.num_rows, dtype=np.bool_) if rows is None else rows


class RingVectorEnv(VectorEnv):
    @staticmethod
    def engine_class(world: World, num_rows: int) -> Rings:
        return Rings(num_rows)


class Ring(gymnasium.Env):
    """One day, written against the engine by hand."""

    def __init__(self) -> None:
        self.engine = Rings(1)
        vector: Any = RingVectorEnv(1)
        self.observation_space = vector.single_observation_space
        self.action_space = vector.single_action_space

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        if seed is not None:
            self.engine.seed(np.array([seed]))
        self.engine.reset()
        return self._observation(), self._info()

    def step(self, action: int) -> tuple:
        reward = float(self.engine.step(np.array([action]))[0])
        info, said = self._info(), self.engine.report()
        if self.engine.reported[0]:
            info["ad_id"] = int(said["ad_id"][0])
            info["components"] = {key: float(x[0]) for key, x in said["components"].items()}
        return self._observation(), reward, False, bool(self.engine.truncated[0]), info

    def _observation(self) -> dict:
        entries = {key: value[0].copy()[()] for key, value in self.engine.observation().items()}
        return entries | {"action_mask": np.ones(3, dtype=np.int8)}

    def _info(self) -> dict:
        said = self.engine.info()
        return {
            "request_id": int(said["request_id"][0]),
            "is_open": bool(said["is_open"][0]),
            "action_mask": np.ones(3, dtype=np.int8),
        }


@pytest.mark.parametrize("mode", MODES)
def test_any_engine_will_do(mode: AutoresetMode) -> None:
    env: Any = RingVectorEnv(5, autoreset_mode=mode)
    reference = SyncVectorEnv([Ring] * 5, autoreset_mode=mode)
    assert_same(env.reset(seed=2), reference.reset(seed=2))
    for number in range(20):
        actions = np.arange(number, number + 5) % 3
        got = env.step(actions)
        assert_same(got, reference.step(actions))
        if mode is DISABLED and got[3].any():
            options = [{"reset_mask": got[3].copy()} for _ in range(2)]
            assert_same(env.reset(options=options[0]), reference.reset(options=options[1]))
    check_vector_env(
        Ring,
        lambda n: RingVectorEnv(n, autoreset_mode=mode),
        check_reset_mask=True,
    )


def test_the_engine_keeps_its_arrays() -> None:
    env: Any = RingVectorEnv(2)
    engine = env._engine
    env.reset(seed=0)
    for handed_out, own in (
        (env.eligible_ads(), engine.ads),
        (env.action_masks(), engine.legal_mask),
    ):
        assert handed_out.tolist() == own.tolist()
        assert not np.shares_memory(handed_out, own)


def test_every_row_is_rendered() -> None:
    env: Any = RingVectorEnv(2, render_mode="ansi")
    with pytest.raises(ResetNeeded):
        env.render()
    env.reset(seed=0)
    assert [text.strip() for text in env.render()] == ["ring of row 0", "ring of row 1"]
    silent: Any = RingVectorEnv(2)
    assert silent.render() is None
    with pytest.raises(ValueError, match="render_mode must be None or 'ansi', got 'human'"):
        RingVectorEnv(2, render_mode="human")


@pytest.mark.parametrize("mode", [DISABLED, AutoresetMode.NEXT_STEP])
def test_work_in_python_does_not_grow_with_rows(mode: AutoresetMode) -> None:
    def num_calls(num_rows: int) -> int:
        env: Any = RingVectorEnv(num_rows, autoreset_mode=mode)
        env.reset(seed=[0] * num_rows)
        actions, count = np.zeros(num_rows, dtype=np.int64), 0

        def counted(frame: object, event: str, argument: object) -> None:
            nonlocal count
            count += 1

        sys.setprofile(counted)
        try:
            for _ in range(6):
                env.step(actions)
            env.reset(seed=3)
            env.step(actions)
            env.reset(options={"reset_mask": np.arange(num_rows) < 1})
        finally:
            sys.setprofile(None)
        return count

    assert num_calls(3) == num_calls(300)
