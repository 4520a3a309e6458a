"""AdRequestTorchEnv: specs, masks, and number-for-number agreement with the Gymnasium one."""

from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import ActionMask, Compose, RewardSum, StepCounter, TransformedEnv
from torchrl.envs.utils import check_env_specs

from envs import AdRequestEnv, AdRequestTorchEnv, request_from_observation
from envs.choices import IllegalActionError
from gpr_rl.decoding import beam_search
from simulators.rewards import Outcome
from simulators.world import World
from tests.gpr_rl.models.model_inputs import make_model


@pytest.mark.parametrize("batch_size", [[1], [5]])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_torchrl_accepts_the_specs(world: World, batch_size: list[int], device: str) -> None:
    env = AdRequestTorchEnv(world, batch_size, reward=["ecpm", "final_value=0.5"], device=device)
    check_env_specs(env, break_when_any_done="both", seed=0)


def test_random_rollouts_are_legal_and_end_at_the_last_level(world: World) -> None:
    env = AdRequestTorchEnv(world, [64])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        data = env.rollout(9, break_when_any_done=False)
    assert data.shape == (64, 9)
    assert data["action_mask"].any(-1).all()
    assert data["action_mask"].gather(-1, data["action"].unsqueeze(-1)).all()
    assert not data["next", "illegal"].any()
    assert torch.equal(data["level"], torch.tensor([0, 1, 2] * 3).expand(64, -1))
    ended = data["next", "done"].squeeze(-1)
    assert torch.equal(ended, (data["level"] == 2))
    assert torch.equal(data["next", "terminated"], data["next", "done"])
    assert data["next", "action_mask"][ended].all()
    reward = data["next", "reward"].squeeze(-1)
    assert (reward[~ended] == 0).all()
    assert torch.equal(reward[ended], data["next", "final_value"][ended])
    assert torch.equal(data["next", "components", "final_value"], data["next", "final_value"])
    ad_id = data["next", "ad_id"]
    assert (ad_id[~ended] == -1).all()
    assert torch.equal(world.codes[ad_id[ended]], data["next", "prefix"][ended])
    eligible = world.eligible(data["request_id"][ended])
    assert eligible.gather(1, ad_id[ended].unsqueeze(-1)).all()


RTOL = 1e-6


def matches(name: str, got: Tensor, want: np.ndarray) -> None:
    if got.is_floating_point():
        np.testing.assert_allclose(got.numpy(), want, rtol=RTOL, err_msg=name)
    else:
        np.testing.assert_array_equal(got.numpy(), want, err_msg=name)


@pytest.mark.parametrize("legal_share", [1.0, 0.6])
def test_rows_are_gymnasium_environments_with_their_own_seeds(
    world: World, legal_share: float
) -> None:
    """Illegal choices end rows early, so with 0.6 the rows run out of step."""
    size, seed = 5, 11
    batch = AdRequestTorchEnv(world, [size], seed=seed)
    singles = [AdRequestEnv(world) for _ in range(size)]
    rng = np.random.default_rng(0)
    actions = []

    def policy(data: TensorDictBase) -> TensorDictBase:
        codes = [
            rng.choice(np.flatnonzero(mask)) if rng.random() < legal_share else rng.integers(16)
            for mask in data["action_mask"].numpy()
        ]
        actions.append(codes)
        return data.set("action", torch.tensor(np.array(codes)))

    steps = batch.rollout(12, policy, break_when_any_done=False)
    start = [env.reset(seed=seed + row) for row, env in enumerate(singles)]
    illegal = 0
    for row, env in enumerate(singles):
        observation, info = start[row]
        for t in range(12):
            now, after = steps[row, t], steps[row, t]["next"]
            for key, value in observation.items():
                matches(key, now[key], value)
            for key in ("request_id", "user_id", "timestamp"):
                assert now[key] == info[key]
            observation, reward, ended, _, info = env.step(actions[t][row])
            for key, value in observation.items():
                matches(key, after[key], value)
            matches("reward", after["reward"], np.array([reward]))
            assert bool(after["done"]) == ended
            assert bool(after["illegal"]) == info["illegal"]
            illegal += info["illegal"]
            if ended:
                for key in ("pctr", "pcvr", "ecpm", "final_value", "ad_id"):
                    matches(key, after[key], info[key])
                matches(
                    "components",
                    after["components", "final_value"],
                    info["components"]["final_value"],
                )
                observation, info = env.reset()
    assert (illegal > 3) == (legal_share < 1.0)


def test_the_rankers_run_once_per_finished_batch(world: World) -> None:
    counted = world.replace()
    calls = []

    def outcome(request_id: Tensor, ad_id: Tensor, **options: object) -> Outcome:
        calls.append(tuple(ad_id.shape))
        return world.outcome(request_id, ad_id, **options)  # type: ignore[arg-type]

    counted.outcome = outcome
    AdRequestTorchEnv(counted, [7]).rollout(6, break_when_any_done=False)
    assert calls == [(7, 1), (7, 1)]


def test_set_seed_begins_the_stream_anew(world: World) -> None:
    env = AdRequestTorchEnv(world, [8], seed=3)
    first = [env.reset()["request_id"] for _ in range(3)]
    env.set_seed(3)
    again = [env.reset()["request_id"] for _ in range(3)]
    assert torch.equal(torch.stack(first), torch.stack(again))
    env.set_seed(4)  # row i with seed s + 1 is row i + 1 with seed s
    assert torch.equal(env.reset()["request_id"][:-1], first[0][1:])


def test_requests_can_be_picked(world: World) -> None:
    env = AdRequestTorchEnv(world, [4])
    ids = world.request_ids("test")[:4]
    data = env.reset(request_id=ids)
    assert torch.equal(data["request_id"], ids)
    assert torch.equal(env.eligible_ads(), world.eligible(ids))
    with pytest.raises(ValueError, match=r"request_id must be an integer or \[4\], got array"):
        env.reset(request_id=ids[:3])
    with pytest.raises(ValueError, match=r"request_id must lie in \[0, \d+\), got -5"):
        env.reset(request_id=torch.tensor([1, 2, -5, 3]))


def test_a_partial_reset_leaves_the_other_rows(world: World) -> None:
    env = AdRequestTorchEnv(world, [3])
    before = env.rand_step(env.reset())["next"].clone()
    rows = torch.tensor([[False], [True], [False]])
    after = env.reset(before.clone().set("_reset", rows))
    kept = torch.tensor([0, 2])
    for key in ("token_codes", "prefix", "level", "request_id", "action_mask"):
        assert torch.equal(after[key][kept], before[key][kept]), key
    assert after["level"].tolist() == [1, 0, 1]
    assert after["request_id"][1] != before["request_id"][1]


def test_rows_wait_for_each_other_when_asked(world: World) -> None:
    env = AdRequestTorchEnv(world, [2])
    start = env.reset()
    wrong = torch.zeros(2, dtype=torch.int64)
    while start["action_mask"].all():
        start = env.rand_step(start)["next"]
    row = int((~start["action_mask"]).any(-1).nonzero()[0])
    legal = start["action_mask"].float().argmax(-1)
    wrong = torch.where(torch.arange(2) == row, start["action_mask"].float().argmin(-1), legal)
    ended = env.step(start.clone().set("action", wrong))["next"]
    assert ended["illegal"].tolist() == [i == row for i in range(2)]
    later = env.step(ended.clone().set("action", ended["action_mask"].float().argmax(-1)))["next"]
    for key in ("prefix", "level", "ad_id", "illegal"):
        assert torch.equal(later[key][row], ended[key][row])
    assert later["reward"][row] == 0
    assert later["level"][1 - row] == ended["level"][1 - row] + 1
    held = env.step(
        later.exclude("_step").set("action", legal * 0).set("_step", torch.zeros(2, 1).bool())
    )
    assert torch.equal(held["next", "level"], later["level"])


def test_torchrl_transforms_work_on_it(world: World) -> None:
    env = TransformedEnv(
        AdRequestTorchEnv(world, [4]), Compose(RewardSum(), StepCounter(), ActionMask())
    )
    data = env.rollout(6, break_when_any_done=False)
    assert not data["next", "illegal"].any()
    last = data["next", "done"].squeeze(-1)
    assert torch.equal(data["next", "episode_reward"][last], data["next", "reward"][last])
    assert data["next", "step_count"].max() == 3


@pytest.mark.parametrize("batch_size", [[], [0], [2, 3], [2.5], "4", True])
def test_a_bad_batch_size_is_named(world: World, batch_size: Any, unchecked_shapes: None) -> None:
    with pytest.raises(ValueError, match=r"batch_size must be one positive number.* got"):
        AdRequestTorchEnv(world, batch_size)


def test_bad_actions_are_named(world: World) -> None:
    env = AdRequestTorchEnv(world, [2], strict=True)
    data = env.reset()
    with pytest.raises(ValueError, match=r"action must be an integer in \[0, 16\), got 16"):
        env.step(data.clone().set("action", torch.tensor([0, 16])))
    while data["action_mask"].all():
        data = env.rand_step(data)["next"]
    with pytest.raises(IllegalActionError, match="is illegal in request"):
        env.step(data.clone().set("action", data["action_mask"].float().argmin(-1)))


def test_greedy_decoding_through_the_environment_is_the_beam_of_one(world: World) -> None:
    model = make_model(seed=3, spec=world.spec).eval()
    env = AdRequestTorchEnv(world, [6], seed=1)

    def policy(data: TensorDictBase) -> TensorDictBase:
        context = model.encode(request_from_observation(data))
        prefix = data["prefix"][:, None, : int(data["level"][0])]
        log_prob = model.step(context, prefix)[0][:, 0]
        return data.set("action", log_prob.masked_fill(~data["action_mask"], -torch.inf).argmax(-1))

    with torch.no_grad():
        data: TensorDict = env.rollout(3, policy)
    ids = data["request_id"][:, 0]
    request = world.request(ids)
    assert (request_from_observation(data[:, 0]) == request).all()
    want = beam_search(model, request, world.trie, 1, world.eligible(ids), renormalize=True)
    assert torch.equal(data["action"], want.codes[:, 0])
    assert torch.equal(data["next", "ad_id"][:, -1], want.ad_id[:, 0])
