"""K rows that share a request: the same requests as K single rows, begun and ended together."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from tensordict import TensorDictBase
from torchrl.envs.utils import check_env_specs

from envs import AdDayTorchEnv, AdDayVectorEnv, AdRequestEnv, AdRequestTorchEnv, AdRequestVectorEnv
from simulators.world import World

K, B = 3, 4


def random_codes(data: TensorDictBase, rng: np.random.Generator, legal_share: float) -> list[int]:
    return [
        int(rng.choice(np.flatnonzero(mask)))
        if rng.random() < legal_share
        else int(rng.integers(len(mask)))
        for mask in data["action_mask"].numpy()
    ]


@pytest.mark.parametrize("kind", [AdRequestTorchEnv, AdDayTorchEnv])
def test_torchrl_accepts_the_specs(world: World, kind: Any) -> None:
    check_env_specs(kind(world, [B * K], candidates=K), break_when_any_done="both", seed=0)


@pytest.mark.parametrize("legal_share", [1.0, 0.5])
def test_rows_share_a_request_in_every_autoreset(world: World, legal_share: float) -> None:
    env = AdRequestTorchEnv(world, [B * K], candidates=K, seed=7)
    rng = np.random.default_rng(0)

    def policy(data: TensorDictBase) -> TensorDictBase:
        return data.set("action", torch.tensor(random_codes(data, rng, legal_share)))

    data = env.rollout(30, policy, auto_cast_to_device=False, break_when_any_done=False)
    asked = data["request_id"].view(B, K, -1)
    assert torch.equal(asked, asked[:, :1].expand_as(asked))
    done = data["next", "done"].view(B, K, -1)
    assert torch.equal(done, done[:, :1].expand_as(done))
    begins = (data["level"] == 0).view(B, K, -1)
    assert torch.equal(begins, begins[:, :1].expand_as(begins))
    single = AdRequestEnv(world)
    for group in range(B):
        count = int(begins[group, 0].sum())
        _, info = single.reset(seed=7 + group)
        wanted = [info["request_id"]]
        for _ in range(count - 1):
            wanted.append(single.reset()[1]["request_id"])
        assert asked[group, 0][begins[group, 0]].tolist() == wanted
    assert (count == 10) == (legal_share == 1.0)
    paid = data["next", "reward"].squeeze(-1).view(B, K, -1)
    episode = begins[:, :1].expand(-1, K, -1).cumsum(-1)
    for number in range(1, int(episode.max()) + 1):  # every row is paid once a request, at most
        assert (((paid != 0) & (episode == number)).sum(-1) <= 1).all()
    illegal = paid == -1
    assert illegal.any() == (legal_share < 1)
    assert (illegal & ~done.squeeze(-1)).any() == (legal_share < 1)  # some wait for the others


def test_a_group_ends_early_only_if_all_its_rows_do(world: World) -> None:
    env = AdRequestTorchEnv(world, [2 * K], candidates=K)
    data = env.reset()
    data = env.step(data.set("action", data["action_mask"].int().argmax(-1)))["next"]
    mask = data["action_mask"].int()
    wrong, right = mask.argmin(-1), mask.argmax(-1)
    action = wrong.clone()
    action[-1] = right[-1]
    data = env.step(data.set("action", action))["next"]
    assert data["done"].squeeze(-1).tolist() == [True] * K + [False] * K
    assert data["illegal"].tolist() == [True] * (2 * K - 1) + [False]
    assert data["action_mask"][: 2 * K - 1].all()  # they await nothing


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_the_vector_environment_shares_requests_in_every_mode(
    world: World, mode: AutoresetMode
) -> None:
    env = AdRequestVectorEnv(B * K, world, candidates=K, autoreset_mode=mode)
    observation, info = env.reset(seed=3)
    rng = np.random.default_rng(1)
    seen = []
    for _ in range(25):
        asked = info["request_id"].reshape(B, K)
        assert (asked == asked[:, :1]).all()
        seen.append(asked[:, 0])
        codes = [int(rng.choice(np.flatnonzero(mask))) for mask in observation["action_mask"]]
        codes = np.where(rng.random(B * K) < 0.2, rng.integers(16, size=B * K), codes)
        observation, _, terminated, truncated, info = env.step(codes)
        done = terminated | truncated
        assert (done.reshape(B, K) == done.reshape(B, K)[:, :1]).all()
        if mode is AutoresetMode.DISABLED and done.any():
            observation, found = env.reset(options={"reset_mask": done})
            info["request_id"] = np.where(done, found["request_id"], info["request_id"])
    assert len(np.unique(np.stack(seen)[:, 0])) > 5
    env.reset()  # without a seed, by chance: still one for each group
    assert env.action_masks().shape[0] == B * K


def lead_code(group: int, request: int, level: int, mask: np.ndarray, legal_share: float) -> int:
    """What the first row of a group chooses, whoever else is in it."""
    rng = np.random.default_rng((group, request, level))
    legal = rng.random() < legal_share
    return int(rng.choice(np.flatnonzero(mask)) if legal else rng.integers(len(mask)))


def days(env: AdDayTorchEnv, size: int, legal_share: float) -> list[list[dict[str, Any]]]:
    """What was said to the first rows at the end of every request of a day."""
    data, rng = env.reset(), np.random.default_rng(2)
    said: list[list[dict[str, Any]]] = [[] for _ in range(B)]
    while not data["done"].all():
        codes = random_codes(data, rng, 0.9)
        for group in range(B):
            row = group * size
            mask, level = data["action_mask"][row].numpy(), int(data["level"][row])
            codes[row] = lead_code(group, len(said[group]), level, mask, legal_share)
        data = env.step(data.set("action", torch.tensor(codes)))["next"]
        for group in range(B):
            row = group * size
            if data["answered_request_id"][row] >= 0:
                entry = {key: data[key][row].item() for key in REPORTED}
                said[group].append(entry | {"reward": data["reward"][row].item()})
    totals = [{key: data[key][group * size].item() for key in TOTALS} for group in range(B)]
    return [[*entries, total] for entries, total in zip(said, totals, strict=True)]


REPORTED = ("answered_request_id", "ad_id", "slot", "ecpm", "final_value", "price", "charge")
TOTALS = ("impressions", "clicks", "conversions", "revenue", "num_unfilled", "num_illegal")


@pytest.mark.parametrize("legal_share", [1.0, 0.7])
@pytest.mark.parametrize("rules", [{}, {"num_rivals": 3, "reserve_cpm": 20.0, "num_slots": 2}])
def test_the_first_rows_play_the_day_of_one_candidate(
    world: World, legal_share: float, rules: dict[str, Any]
) -> None:
    """Bit for bit, whatever the others propose and however long they take."""
    one = AdDayTorchEnv(world, [B], seed=5, num_requests=8, **rules)
    many = AdDayTorchEnv(world, [B * K], seed=5, num_requests=8, candidates=K, **rules)
    alone = days(one, 1, legal_share)
    assert alone == days(many, K, legal_share)
    assert sum(len(entries) for entries in alone) > 4 * B


def test_the_others_earn_what_their_ad_would_earn_if_it_were_played(world: World) -> None:
    """At a day's first request, against days in which each row plays its own ad."""
    many = AdDayTorchEnv(world, [B * K], seed=5, candidates=K)
    alone = AdDayTorchEnv(world, [B * K], seed=0)
    seeds = 5 + np.arange(B * K) // K
    alone._engine.seed(seeds)
    shared, own = many.reset(), alone.reset()
    rng = np.random.default_rng(4)
    for _ in range(world.spec.num_levels):
        assert torch.equal(shared["action_mask"], own["action_mask"])
        action = torch.tensor(random_codes(shared, rng, 1.0))
        shared = many.step(shared.set("action", action))["next"]
        own = alone.step(own.set("action", action))["next"]
    assert (own["slot"] == 0).all()  # nobody else is there, and nothing is reserved
    torch.testing.assert_close(shared["reward"], own["reward"], rtol=1e-6, atol=0)
    torch.testing.assert_close(shared["ranker_reward"], own["reward"][:, 0], rtol=1e-6, atol=0)
    for key in ("ad_id", "pctr", "pcvr", "ecpm", "final_value"):
        torch.testing.assert_close(shared[key], own[key], rtol=1e-6, atol=0)
    assert (shared["slot"].view(B, K)[:, 1:] == -1).all()  # only the first was in the auction
    assert shared["impressions"].tolist() == [1] * (B * K)


def test_wrong_groups_are_named(world: World) -> None:
    with pytest.raises(ValueError, match="multiple of candidates, 3, got 4"):
        AdRequestTorchEnv(world, [4], candidates=3)
    with pytest.raises(ValueError, match="candidates must be at least 1, got 0"):
        AdRequestTorchEnv(world, [4], candidates=0)
    with pytest.raises(ValueError, match="multiple of candidates, 2, got 1"):
        AdRequestEnv(world, candidates=2)
    for env in (AdRequestVectorEnv(6, world, candidates=3), AdDayVectorEnv(6, world, candidates=3)):
        with pytest.raises(ValueError, match=r"seed must be the same for the 3 rows .*\[3, 4, 5\]"):
            env.reset(seed=[2, 2, 2, 3, 4, 5])
        env.reset(seed=[2, 2, 2, 3, 3, 3])
        part = np.array([True, False, False, True, True, True])
        with pytest.raises(ValueError, match="whether a row is reset must be the same"):
            env.reset(options={"reset_mask": part})
    ids = world.request_ids("train")[:6]
    torch_env = AdRequestTorchEnv(world, [6], candidates=3)
    with pytest.raises(ValueError, match="request_id must be the same"):
        torch_env.reset(request_id=ids)
    data = torch_env.reset(request_id=ids[:2].repeat_interleave(3))
    assert data["request_id"].tolist() == ids[:2].repeat_interleave(3).tolist()
    days = torch.tensor([0, 0, 0, 1, 1, 1])
    assert AdDayTorchEnv(world, [6], candidates=3).reset(day=days)["day"].tolist() == days.tolist()
