"""AdRequest-v0: rules against brute force over the catalogue, seeds, rewards, errors, no leak."""

import dataclasses
import warnings
from collections.abc import Iterator

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from torch import Tensor

import envs
from envs import AdRequestEnv, register_environments, request_from_observation
from envs.choices import IllegalActionError
from envs.requests import Episodes
from gpr_rl.decoding import beam_search
from simulators.rewards import Outcome, RewardError, RewardMix
from simulators.world import World
from tests.gpr_rl.models.model_inputs import make_model

ID = "envs:gpr_rl/AdRequest-v0"
Info = dict


def choose(mask: np.ndarray, rng: np.random.Generator) -> int:
    return int(rng.choice(np.flatnonzero(mask)))


def play(env: AdRequestEnv, rng: np.random.Generator) -> Iterator[tuple[dict, float, bool, Info]]:
    """Legal random choices up to the end of the episode that has just been reset."""
    ended = False
    while not ended:
        observation, reward, ended, _, info = env.step(choose(env.action_masks(), rng))
        yield observation, reward, ended, info


def half(outcome: Outcome) -> Tensor:
    return outcome.ecpm / 2


def ignored(outcome: Outcome) -> Tensor:
    return torch.full_like(outcome.ecpm, torch.nan)


def test_gymnasium_accepts_it_without_a_warning() -> None:
    env = gymnasium.make(ID, world="tiny")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


def test_registering_again_changes_nothing() -> None:
    spec = gymnasium.registry["gpr_rl/AdRequest-v0"]
    register_environments()
    assert gymnasium.registry["gpr_rl/AdRequest-v0"] is spec
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = envs.Nothing


def test_masks_ads_and_rewards_match_brute_force(world: World) -> None:
    env, rng = AdRequestEnv(world), np.random.default_rng(0)
    codes, alpha = world.codes.numpy(), world.alpha.double().numpy()
    for _ in range(25):
        observation, info = env.reset(seed=None)
        alive = env.eligible_ads()
        request_id = torch.tensor([info["request_id"]])
        np.testing.assert_array_equal(alive, world.eligible(request_id)[0].numpy())
        for level in range(3):
            legal = np.isin(np.arange(16), codes[alive, level])
            assert legal.any()
            for shown in (observation["action_mask"], info["action_mask"], env.action_masks()):
                np.testing.assert_array_equal(shown, legal)
            assert env.action_masks().dtype == bool
            assert observation["action_mask"].dtype == info["action_mask"].dtype == np.int8
            assert observation["level"] == level
            action = choose(legal, rng)
            alive = alive & (codes[:, level] == action)
            observation, reward, ended, truncated, info = env.step(np.int64(action))
            assert observation in env.observation_space
            assert observation["prefix"][level] == action
            assert ended == (level == 2)
            assert not truncated
            assert reward == 0.0 or ended
        assert observation["action_mask"].all()
        # The path stands for the dearest of the ads left, the lowest id among equals.
        left = np.flatnonzero(alive)
        value = world.ad_value.numpy()[left]
        assert info["ad_id"] == left[value == value.max()][0]
        said = world.outcome(request_id, torch.tensor([[info["ad_id"]]]), exact=True)
        for key in ("pctr", "pcvr", "ecpm"):
            assert info[key] == pytest.approx(float(getattr(said, key)), rel=1e-6)
        by_hand = info["ecpm"] + (alpha[0] * info["pctr"] + alpha[1] * info["pcvr"]) / 2
        assert reward == pytest.approx(by_hand, rel=1e-5)
        assert info["final_value"] == info["components"]["final_value"] == reward
        assert not info["illegal"]


def test_the_nth_request_depends_on_seed_and_n_only(world: World) -> None:
    env, rng = AdRequestEnv(world), np.random.default_rng(1)

    def requests(seed: int, *, finish: bool) -> list[int]:
        ids = []
        for n in range(8):
            _, info = env.reset(seed=seed if n == 0 else None)
            ids.append(info["request_id"])
            if finish:
                list(play(env, rng))
        return ids

    first = requests(4, finish=True)
    assert requests(5, finish=False) != first
    assert requests(4, finish=False) == first
    assert len(set(first)) > 4
    # A picked request counts as an episode: the ones after it are the same.
    env.reset(seed=4)
    env.reset(options={"request_id": first[0]})
    assert env.reset()[1]["request_id"] == first[2]


def test_draws_are_uniform_over_the_split(world: World) -> None:
    episodes = Episodes(world, 4_000, split="validation")
    episodes.seed(np.arange(4_000))
    drawn = torch.from_numpy(episodes.draw()[:, 0])
    pool = world.request_ids("validation")
    assert torch.isin(drawn, pool).all()
    place = torch.searchsorted(pool, drawn) / len(pool)
    quarters = torch.histc(place, 4, 0.0, 1.0)
    # Binomial(4000, 1/4): mean 1000, standard deviation 27.4.
    torch.testing.assert_close(quarters, torch.full((4,), 1000.0), rtol=0, atol=110)


def test_equal_seeds_give_equal_episodes(world: World) -> None:
    one, two = AdRequestEnv(world), AdRequestEnv(world)
    start_one, start_two = one.reset(seed=9), two.reset(seed=9)
    assert data_equivalence(start_one, start_two, exact=True)
    steps = zip(
        play(one, np.random.default_rng(2)), play(two, np.random.default_rng(2)), strict=True
    )
    for step_one, step_two in steps:
        assert data_equivalence(step_one, step_two, exact=True)


def test_an_unseeded_environment_is_seeded_by_chance(world: World) -> None:
    drawn = {AdRequestEnv(world).reset()[1]["request_id"] for _ in range(6)}
    assert len(drawn) > 1


def test_a_request_can_be_picked(world: World) -> None:
    env = AdRequestEnv(world)
    wanted = int(world.request_ids("test")[7])
    observation, info = env.reset(options={"request_id": np.int64(wanted)})
    assert info["request_id"] == wanted
    assert info["user_id"] == world.request_user[wanted]
    assert info["timestamp"] == world.request_time[wanted]
    request = world.request(torch.tensor([wanted]))
    np.testing.assert_array_equal(observation["token_kind"], request.tokens.kind[0])
    np.testing.assert_array_equal(observation["token_codes"], request.tokens.codes[0])
    np.testing.assert_array_equal(observation["popularity"], request.popularity[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"request_id": 10**9}, r"request_id must lie in \[0, \d+\), got 1000000000"),
        ({"request_id": -1}, "got -1"),
        ({"request_id": "7"}, r"request_id must be an integer or \[1\], got '7'"),
        ({"request": 7}, r"options may hold 'request_id' only, got \['request'\]"),
    ],
)
def test_bad_options_are_named(world: World, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdRequestEnv(world).reset(options=options)


def test_a_request_without_eligible_ad_is_refused(world: World) -> None:
    bare = world.replace()
    bare.eligible = lambda ids: torch.zeros(len(ids), world.num_ads, dtype=torch.bool)
    with pytest.raises(ValueError, match="request 3 has no eligible ad"):
        AdRequestEnv(bare).reset(options={"request_id": 3})


def first_illegal(env: AdRequestEnv) -> int:
    """Walk legally until some code is illegal, and return it."""
    while env.action_masks().all():
        env.step(0)
    return int(np.flatnonzero(~env.action_masks())[0])


def test_an_illegal_code_ends_the_episode(world: World) -> None:
    env = AdRequestEnv(world)
    env.reset(seed=0)
    observation, reward, ended, truncated, info = env.step(first_illegal(env))
    assert (reward, ended, truncated, info["illegal"]) == (-1.0, True, False, True)
    assert info["ad_id"] == -1
    assert info["pctr"] == info["ecpm"] == info["components"]["final_value"] == 0.0
    assert observation["action_mask"].all()
    assert info["action_mask"].all()
    assert observation in env.observation_space
    with pytest.raises(ResetNeeded, match="the episode is over"):
        env.step(0)
    dear = AdRequestEnv(world, illegal_reward=-7.5)
    dear.reset(seed=0)
    assert dear.step(first_illegal(dear))[1] == -7.5


def test_a_strict_environment_raises_and_stays(world: World) -> None:
    env = AdRequestEnv(world, strict=True)
    env.reset(seed=0)
    wrong = first_illegal(env)
    mask = env.action_masks()
    with pytest.raises(IllegalActionError, match=rf"action {wrong} is illegal in request \d+"):
        env.step(wrong)
    np.testing.assert_array_equal(env.action_masks(), mask)
    assert not env.step(int(np.flatnonzero(mask)[0]))[4]["illegal"]


@pytest.mark.parametrize("action", [16, -1, 1.5, "3", None])
def test_an_action_outside_the_space_is_refused(world: World, action: object) -> None:
    env = AdRequestEnv(world)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action must be an integer"):
        env.step(action)  # type: ignore[arg-type]


def test_nothing_works_before_the_first_reset(world: World) -> None:
    env = AdRequestEnv(world)
    for call in (env.action_masks, env.eligible_ads, lambda: env.step(0)):
        with pytest.raises(ResetNeeded):
            call()


@pytest.mark.parametrize(
    ("reward", "weights"),
    [
        (half, {"half": 1.0}),
        ("ecpm=2", {"ecpm": 2.0}),
        ([f"{__name__}:half=0.5", "ecpm=0"], {f"{__name__}:half": 0.5, "ecpm": 0.0}),
        (RewardMix({"h": half, "e": ignored}, {"h": 3.0, "e": 1.0}), {"h": 3.0}),
    ],
)
def test_rewards_can_be_plugged_in(world: World, reward: object, weights: dict) -> None:
    env = AdRequestEnv(world, reward=reward)  # type: ignore[arg-type]
    env.reset(seed=6)
    *_, (_, got, _, info) = play(env, np.random.default_rng(3))
    value = {name: info["ecpm"] * (1.0 if name == "ecpm" else 0.5) for name in weights}
    assert got == pytest.approx(sum(weights[k] * value[k] for k in weights))
    for name in weights:
        assert info["components"][name] == pytest.approx(value[name])
    if "e" in info["components"]:
        assert np.isnan(info["components"]["e"])


def test_bad_arguments_are_named(world: World) -> None:
    with pytest.raises(ValueError, match="unknown world 'nowhere'"):
        AdRequestEnv("nowhere")
    with pytest.raises(ValueError, match="split must be one of"):
        AdRequestEnv(world, split="tomorrow")
    with pytest.raises(RewardError, match="unknown reward 'joy'"):
        AdRequestEnv(world, reward="joy")


def test_observations_know_nothing_of_the_rankers_and_of_what_happened(world: World) -> None:
    none = torch.zeros_like(world.request_ad)
    other = world.replace(
        rankers=lambda inputs, past, ads, exact: (torch.full(ads.shape, 0.5),) * 2,
        requests=dataclasses.replace(world.requests, ad=none, action=none),
    )
    env, changed = AdRequestEnv(world), AdRequestEnv(other)
    for seed in range(5):
        seen, _ = env.reset(seed=seed)
        also_seen, _ = changed.reset(seed=seed)
        assert data_equivalence(seen, also_seen, exact=True)
        steps = list(play(env, np.random.default_rng(seed)))
        also_steps = list(play(changed, np.random.default_rng(seed)))
        for step, also_step in zip(steps, also_steps, strict=True):
            assert data_equivalence(step[0], also_step[0], exact=True)
        assert also_steps[-1][3]["pctr"] == 0.5 != steps[-1][3]["pctr"]


@pytest.mark.parametrize("mode", [None, "sync"])
def test_gymnasium_vectorises_it(mode: str | None) -> None:
    vector = gymnasium.make_vec(ID, num_envs=3, vectorization_mode=mode, world="tiny")
    batch, infos = vector.reset(seed=20)
    for row in range(3):
        observation, info = gymnasium.make(ID, world="tiny").reset(seed=20 + row)
        for key, value in observation.items():
            np.testing.assert_array_equal(batch[key][row], value)
        assert infos["request_id"][row] == info["request_id"]
    for _ in range(3):
        batch, rewards, ended, _, infos = vector.step(batch["action_mask"].argmax(-1))
    assert ended.all()
    assert (rewards > 0).all()
    vector.close()


def test_greedy_decoding_through_the_environment_is_the_beam_of_one(world: World) -> None:
    model = make_model(seed=3, spec=world.spec).eval()
    env = AdRequestEnv(world)
    for seed in range(4):
        observation, info = env.reset(seed=seed)
        ids = torch.tensor([info["request_id"]])
        want = beam_search(
            model, world.request(ids), world.trie, 1, world.eligible(ids), renormalize=True
        )
        ended = False
        while not ended:
            with torch.no_grad():
                context = model.encode(request_from_observation(observation, info))
                prefix = torch.as_tensor(observation["prefix"][: observation["level"]])
                log_prob, _ = model.step(context, prefix.view(1, 1, -1))
            log_prob = log_prob[0, 0].masked_fill(~torch.as_tensor(env.action_masks()), -torch.inf)
            observation, _, ended, _, info = env.step(int(log_prob.argmax()))
        assert observation["prefix"].tolist() == want.codes[0, 0].tolist()
        assert info["ad_id"] == int(want.ad_id)


def test_a_request_comes_back_from_its_observation(world: World) -> None:
    env = AdRequestEnv(world)
    observation, info = env.reset(seed=2)
    want = world.request(torch.tensor([info["request_id"]]))
    got = request_from_observation(observation, info)
    assert (got == want).all()
    assert got.tokens.preference.dtype == torch.float32
    unknown = request_from_observation(observation)
    assert int(unknown.request_id) == int(unknown.user_id) == int(unknown.timestamp) == -1
    batch = {key: np.stack([value, value]) for key, value in observation.items()}
    assert request_from_observation(batch).tokens.kind.shape == (2, world.spec.max_tokens)
