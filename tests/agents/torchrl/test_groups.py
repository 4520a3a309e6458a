"""GroupCandidates against a plain loop over the steps, and what it refuses."""

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs import EnvBase

from agents.rollout import RolloutConfig, rollout
from agents.torchrl import GroupCandidates
from envs import AdDayTorchEnv, AdRequestTorchEnv, request_from_observation
from simulators.world import World
from tests.gpr_rl.models.model_inputs import make_model

K, B = 4, 3


def play(env: EnvBase, steps: int, legal_share: float, seed: int = 0) -> TensorDict:
    """Steps of a made-up policy, [R, T]; its log-probabilities are made up too."""
    rng = np.random.default_rng(seed)

    def policy(data: TensorDictBase) -> TensorDictBase:
        codes = [
            int(rng.choice(np.flatnonzero(mask)))
            if rng.random() < legal_share
            else int(rng.integers(len(mask)))
            for mask in data["action_mask"].numpy()
        ]
        data.set("action", torch.tensor(codes))
        data.set("state_value", torch.from_numpy(rng.normal(size=(len(codes), 1))).float())
        return data.set("action_log_prob", torch.from_numpy(-rng.random(len(codes))).float())

    return env.rollout(steps, policy, break_when_any_done=False)


def folded_by_hand(rows: TensorDict, reward_key: Any) -> list[dict[str, Any]]:
    """The complete requests, step by step, in order of groups and time."""
    requests = []
    for group in range(len(rows) // K):
        own = rows[group * K : (group + 1) * K]
        found: dict[int, dict[str, Any]] = defaultdict(lambda: {"codes": [[] for _ in range(K)]})
        number = -1
        for t in range(rows.shape[1]):
            if own["level"][0, t] == 0:
                number += 1
                found[number]["request_id"] = int(own["request_id"][0, t])
                found[number]["ended"] = [False] * K
                found[number]["ad_id"] = [-1] * K
                found[number]["reward"] = [0.0] * K
            entry = found[number]
            for k in range(K):
                if entry["ended"][k]:
                    continue
                entry["codes"][k].append(int(own["action"][k, t]))
                if own["next", "illegal"][k, t]:
                    entry["ended"][k] = True
                elif own["next", "ad_id"][k, t] >= 0:
                    entry["ended"][k] = True
                    entry["ad_id"][k] = int(own["next", "ad_id"][k, t])
                    entry["reward"][k] = float(own.get(reward_key)[k, t])
        requests += [entry for entry in found.values() if all(entry["ended"])]
    return requests


def check(data: TensorDictBase, wanted: list[dict[str, Any]], scale: float) -> None:
    assert data["request"].request_id.tolist() == [entry["request_id"] for entry in wanted]
    assert data["ad_id"].tolist() == [entry["ad_id"] for entry in wanted]
    assert torch.equal(data["valid"], data["ad_id"] >= 0)
    reward = torch.tensor([entry["reward"] for entry in wanted])
    assert torch.equal(data["reward"], reward)
    assert torch.equal(data["terminal_reward"], reward / scale)
    for b, entry in enumerate(wanted):
        for k in range(K):
            codes = entry["codes"][k] if entry["ad_id"][k] >= 0 else [0, 0, 0]
            assert data["codes"][b, k].tolist() == codes


@pytest.mark.parametrize("legal_share", [1.0, 0.6])
@pytest.mark.parametrize("kind", [AdRequestTorchEnv, AdDayTorchEnv])
def test_a_batch_is_what_a_loop_finds(world: World, kind: Any, legal_share: float) -> None:
    reward_key = ("next", "reward") if kind is AdRequestTorchEnv else ("next", "ranker_reward")
    rows = play(kind(world, [B * K], candidates=K, seed=1), 20, legal_share)
    fold = GroupCandidates(K, reward_key=reward_key, reward_scale=50.0)
    data = fold(rows)
    wanted = folded_by_hand(rows, reward_key)
    assert len(wanted) >= 6 * B
    check(data, wanted, 50.0)
    assert data["valid"].all() == (legal_share == 1.0)
    masks = data["legal_mask"].gather(-1, data["codes"][..., None])
    assert masks.all()
    assert data["legal_mask"][~data["valid"]].all()
    eligible = world.eligible(data["request"].request_id)
    if kind is AdRequestTorchEnv:
        exact = world.trie.restrict(eligible).path_masks(data["codes"])
        assert torch.equal(data["legal_mask"][data["valid"]], exact[data["valid"]])
        again = world.request(data["request"].request_id)
        assert torch.equal(data["popularity"], again.popularity)
        assert torch.equal(data["request"].tokens.codes, again.tokens.codes)
    assert (data["action_log_prob"] < 0)[data["valid"]].all()
    assert not data["action_log_prob"][~data["valid"]].any()
    assert data["state_value"].shape == (*data["codes"].shape, 1)
    assert torch.equal(data["next", "reward"][:, :, -1, 0], data["terminal_reward"])
    assert not data["next", "reward"][:, :, :-1].any()
    assert data["next", "done"][:, :, -1].all()
    assert not data["next", "done"][:, :, :-1].any()


@pytest.mark.parametrize("legal_share", [1.0, 0.6, 0.1])  # with .1 groups fall out of step
@pytest.mark.parametrize("width", [1, 2, 4, 7])
def test_batches_may_end_in_the_middle(world: World, width: int, legal_share: float) -> None:
    rows = play(AdRequestTorchEnv(world, [B * K], candidates=K), 21, legal_share)
    whole = GroupCandidates(K)(rows)
    fold = GroupCandidates(K)
    parts = [fold(part) for part in rows.split(width, dim=1)]
    data = torch.cat([part for part in parts if len(part)])
    assert len(data) == len(whole)
    order = [torch.argsort(x["request"].request_id, stable=True) for x in (data, whole)]
    data, whole = data[order[0]], whole[order[1]]
    for key in ("codes", "ad_id", "valid", "legal_mask", "action_log_prob", "reward"):
        assert torch.equal(data[key], whole[key]), key


def test_flat_steps_and_leading_dimensions_are_taken(world: World) -> None:
    rows = play(AdRequestTorchEnv(world, [B * K], candidates=K), world.spec.num_levels, 1.0)
    whole = GroupCandidates(K)(rows)
    for other in (rows.reshape(-1), rows.view(1, *rows.shape)):
        again = GroupCandidates(K)(other)
        assert torch.equal(again["codes"], whole["codes"])
        assert torch.equal(again["reward"], whole["reward"])


def test_inverse_undoes_it_bit_for_bit(world: World) -> None:
    model = make_model(spec=world.spec)
    ids = world.request_ids("train")[:6]
    data = rollout(model, world, ids, None, RolloutConfig(num_candidates=K), 0, 0)
    data["valid"][2, 1] = False  # as where an illegal code ended the path
    data["ad_id"][2, 1] = -1
    data["codes"][2, 1] = 0
    data["legal_mask"][2, 1] = True
    for key in ("action_log_prob", "state_value", "reward", "terminal_reward"):
        data[key][2, 1] = 0.0
    data["advantage"] = torch.randn(6, K, 3, 1)
    fold = GroupCandidates(K, reward_scale=world.reward_scale)
    rows = fold.inverse(data)
    assert rows.batch_size == (6 * K, 3)
    assert torch.equal(rows["advantage"].view(6, K, 3, 1), data["advantage"])
    again = fold(rows)
    same = ("popularity", "codes", "ad_id", "valid", "legal_mask", "action_log_prob")
    for key in (*same, "state_value", "reward", "terminal_reward"):
        assert torch.equal(again[key], data[key]), key
    assert torch.equal(again["request"].tokens.codes, data["request"].tokens.codes)
    asked = request_from_observation(rows[:, 0])
    assert torch.equal(asked.request_id, ids.repeat_interleave(K))


def test_a_request_that_is_cut_off_is_dropped_with_a_warning(world: World) -> None:
    env = AdRequestTorchEnv(world, [B * K], candidates=K)
    first, second = play(env, 2, 1.0), play(env, 3, 1.0)
    fold = GroupCandidates(K)
    assert len(fold(first)) == 0
    with pytest.warns(UserWarning, match="3 unfinished requests were dropped: a reset cut them"):
        assert len(fold(second)) == B
    rows = play(env, 6, 1.0)
    with pytest.warns(UserWarning, match="3 unfinished requests were dropped: their first steps"):
        assert len(GroupCandidates(K)(rows[:, 1:])) == B
    fold(first)
    fold.reset()
    assert len(fold(second)) == B


def test_what_does_not_fit_is_named(world: World) -> None:
    rows = play(AdRequestTorchEnv(world, [B * K], candidates=K), 4, 1.0)
    with pytest.raises(ValueError, match="multiple of num_candidates, 5, got 12"):
        GroupCandidates(5)(rows)
    with pytest.raises(ValueError, match="num_candidates must lie in"):
        GroupCandidates(0)
    with pytest.raises(ValueError, match="reward_scale must be above 0"):
        GroupCandidates(K, reward_scale=0.0)
    with pytest.raises(ValueError, match="a multiple of 3 steps, got 4"):
        GroupCandidates(K)(rows[0])
    with pytest.raises(KeyError, match="prefix"):
        GroupCandidates(K)(rows.exclude("prefix"))
    with pytest.raises(KeyError, match="action_log_prob"):
        GroupCandidates(K)(rows.exclude("action_log_prob"))
    apart = play(AdRequestTorchEnv(world, [B * K]), 4, 0.5)
    with pytest.raises(ValueError, match="not at the same request as the others of its 4"):
        GroupCandidates(K)(apart)
    alike = play(AdRequestTorchEnv(world, [B * K]), 3, 1.0)  # in step, but of other requests
    with pytest.raises(ValueError, match="do not share their request"):
        GroupCandidates(K)(alike)
    fold = GroupCandidates(K)
    fold(rows)
    with pytest.raises(ValueError, match="the batch before had 12 rows, this one has 8"):
        fold(rows[:8])
    other = play(AdRequestTorchEnv(world, [B * K], candidates=K, seed=99), 6, 1.0)
    with pytest.raises(ValueError, match="in the middle of another request"):
        fold(other[:, 1:])
