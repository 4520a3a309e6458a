"""Candidates say how old their policy is, and none is used that is too old."""

import copy
import warnings

import pytest
import torch
from tensordict import TensorDict

from agents.rollout import rollout
from agents.torchrl import GroupCandidates, make_code_actor, next_version
from agents.trainer import train
from agents.training.staleness import StaleError, fresh, staleness
from envs import AdRequestTorchEnv
from simulators.world import World
from tests.agents.training.test_rl_trainer import REWARD, config, policy
from tests.gpr_rl.models.model_inputs import make_model
from tests.references.tabular import TableWorld

with warnings.catch_warnings():  # torchrl 0.14 warns of its own classes when it is imported
    warnings.filterwarnings("ignore", "Creating .* which inherits", DeprecationWarning)
    from torchrl.collectors import Collector


def drawn(*versions: int) -> TensorDict:
    return TensorDict({"policy_version": torch.tensor(versions)}, batch_size=[len(versions)])


def test_older_candidates_are_dropped_or_refused() -> None:
    data = drawn(3, 5, 4, 1)
    assert staleness(data, 5).tolist() == [2, 0, 1, 4]
    assert fresh(data, 5, 1)["policy_version"].tolist() == [5, 4]
    assert len(fresh(data, 5, 4)) == 4
    with pytest.raises(StaleError, match="2 of 4 requests are older than 1 updates, the oldest 4"):
        fresh(data, 5, 1, strict=True)
    with pytest.raises(ValueError, match="5, newer than the policy's own, 4"):
        fresh(data, 4, 1)
    with pytest.raises(ValueError, match="no policy_version"):
        fresh(TensorDict(batch_size=[2]), 4, 1)


def test_weights_that_do_not_arrive_show_their_age(world: World) -> None:
    """A worker that has a copy of the policy and is not told of two of three updates."""
    model = make_model(spec=world.spec)
    learner = make_code_actor(model, candidates=4)
    worker = copy.deepcopy(learner)
    rows = 3 * 4
    collector = Collector(
        AdRequestTorchEnv(world, [rows], candidates=4),
        worker,
        frames_per_batch=rows * 3,
        total_frames=rows * 3 * 4,
        postproc=GroupCandidates(4),
        auto_register_policy_transforms=False,
    )
    ages, version = [], 0
    for batch, data in enumerate(collector):
        ages.append(staleness(data, version).unique().tolist())
        version = next_version(learner)
        if batch == 1:
            worker.load_state_dict(learner.state_dict())
    collector.shutdown()
    assert version == 4
    assert ages == [[0], [1], [0], [1]]


def test_a_request_is_as_old_as_its_oldest_code(world: World) -> None:
    env = AdRequestTorchEnv(world, [4], candidates=4)
    actor = make_code_actor(make_model(spec=world.spec), candidates=4)
    first = env.rollout(2, actor)
    next_version(actor)
    rest = env.rollout(1, actor, auto_reset=False, tensordict=first[:, -1]["next"].clone())
    fold = GroupCandidates(4)
    assert len(fold(first)) == 0
    assert fold(rest)["policy_version"].tolist() == [0]


def test_the_trainer_logs_the_age_and_refuses_what_is_too_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = TableWorld()
    history = train(policy(world), world, "grpo", config(), 0)
    assert [step["staleness"] for step in history] == [0.0] * 6
    offline = train(policy(world), world, "dpo_offline", config(), 0)
    assert [step["staleness"] for step in offline] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]

    def late(*arguments: object, **options: object) -> TensorDict:
        data = rollout(arguments[0], world, arguments[2], REWARD, arguments[1].config, 0, 0)  # type: ignore[arg-type, attr-defined]
        return data

    monkeypatch.setattr("agents.trainer.timed_rollout", late)
    with pytest.raises(StaleError, match="12 of 12 requests are older than 0 updates"):
        train(policy(world), world, "hepo", config(critic_warmup_steps=6), 0)
    allowed = config(critic_warmup_steps=6, max_staleness=5)
    history = train(policy(world), world, "hepo", allowed, 0)
    assert history[-1]["staleness"] == 5.0
