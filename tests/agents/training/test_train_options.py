"""What a training run can be asked for beside its method: each dial does what it says."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.record.loggers import get_logger

from agents.methods import (
    default_learning_rate,
    make_method,
    method_names,
    register_method,
    search_space,
)
from agents.objectives.surrogate import SurrogateLoss
from agents.rollout import RolloutConfig, rollout
from agents.train_config import TrainConfig
from agents.trainer import train
from agents.training.critic_learner import CriticReplay
from agents.warm_start import build_model
from gpr_rl.models import HHD, HHDConfig
from gpr_rl.pretraining.auxiliary import AuxiliaryConfig
from simulators.make import load_world
from simulators.rewards import RewardMix
from simulators.world.history import past_successes
from tests.references.tabular import TableContext, TablePolicy, TableWorld

REWARD = RewardMix.from_specs([])
Measures = list[dict[str, float]]


def config(**changes: object) -> TrainConfig:
    small: dict[str, object] = {
        "num_steps": 6, "num_requests": 12, "num_candidates": 8, "critic_warmup_steps": 2,
        "learning_rate": 0.05, "critic_learning_rate": 0.05, "critic_requests": 12,
    }  # fmt: skip
    return TrainConfig(**{**small, **changes})  # type: ignore[arg-type]


def run(method: str = "hepo_terminal", **changes: object) -> tuple[TablePolicy, Measures]:
    world = TableWorld()
    model = TablePolicy(world.num_states, 2, 3).double()
    return model, train(model, world, method, config(**changes), seed=0)


def same(one: TablePolicy, other: TablePolicy) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize(
    ("changes", "method"),
    [
        ({"process_reward": "uncapped"}, "hepo"),
        ({"process_reward": "potential"}, "hepo"),
        ({"popularity": "shuffled"}, "hepo"),
        ({"terminal": "mean"}, "hepo_terminal"),
        ({"terminal": "batch"}, "grpo"),
        ({"terminal_at_all_levels": True}, "hepo"),
        ({"through_terminal": True}, "hepo"),
        ({"critic_replay": 3}, "ppo"),
        ({"behavior": "gumbel"}, "grpo"),
        ({"behavior": "beam"}, "grpo"),
        ({"behavior": "tree"}, "grpo"),
        ({"kl_stop": 1e-9}, "grpo"),
        ({"gae_lambda": 0.0}, "ppo"),
        ({"kl_penalty": 0.0}, "ppo"),
    ],
)
def test_every_dial_changes_the_result_and_only_by_itself(changes: dict, method: str) -> None:
    plain, _ = run(method)
    changed, history = run(method, **changes)
    again, _ = run(method, **changes)
    assert same(changed, again)
    assert not same(changed, plain)
    assert all(value == value for m in history for value in m.values())


def test_through_terminal_makes_hepo_hepo_terminal() -> None:
    assert same(run("hepo", through_terminal=True)[0], run("hepo_terminal")[0])


def test_without_a_critic_at_all_levels_there_is_no_warm_up() -> None:
    _, history = run("hepo", terminal_at_all_levels=True)
    assert "critic_loss" not in history[0]
    assert "loss" in history[0]


def test_epochs_stop_where_the_policy_has_moved_far_enough() -> None:
    _, free = run("grpo", num_epochs=4, kl_stop=None)
    _, stopped = run("grpo", num_epochs=4, kl_stop=1e-9)
    assert [m["num_epochs"] for m in free] == [4.0] * 6
    assert [m["num_epochs"] for m in stopped] == [1.0] * 6
    assert all(m["behavior_kl"] > 1e-9 for m in stopped)
    assert free[0]["behavior_kl"] > stopped[0]["behavior_kl"]


def test_offline_candidates_come_from_the_warm_start() -> None:
    _, history = run("dpo_offline", num_steps=30, learning_rate=0.2)
    # The candidates' distribution never moves, so neither does what they earn on average.
    assert history[-1]["kl"] == 0.0
    assert history[-1]["entropy"] == pytest.approx(history[0]["entropy"], rel=0.1)
    assert history[-1]["behavior_kl"] > 0.1  # but the policy did


def test_gumbel_rollouts_are_distinct_and_their_weights_average_one() -> None:
    world = TableWorld()
    model = TablePolicy(world.num_states, 2, 3).double()
    ids = torch.arange(9)
    drawn = RolloutConfig(num_candidates=4, behavior="gumbel")
    data = rollout(model, world, ids, REWARD, drawn, 0, 0)
    for row in range(9):
        ads = data["ad_id"][row][data["valid"][row]].tolist()
        assert len(set(ads)) == len(ads)
    count = data["valid"].sum(-1)
    torch.testing.assert_close(data["weight"].sum(-1), count.double())
    assert "weight" not in rollout(model, world, ids, REWARD, RolloutConfig(), 0, 0)


def test_replay_survives_an_interruption(tmp_path: Path) -> None:
    world = TableWorld()

    def fresh() -> TablePolicy:
        return TablePolicy(world.num_states, 2, 3).double()

    settings = config(num_steps=8, critic_replay=2)
    whole = fresh()
    train(whole, world, "hepo", settings, seed=0)
    path = tmp_path / "run.safetensors"
    for num_steps in (3, 6, 8):  # the buffer is not full, wraps round, wraps again
        model = fresh()
        part = config(num_steps=num_steps, critic_replay=2)
        train(model, world, "hepo", part, seed=0, checkpoint_path=path, resume=True)
    assert same(model, whole)


def test_the_replay_forgets_the_oldest_requests() -> None:
    replay = CriticReplay(4)
    for step in range(3):
        number = torch.full((2,), step)
        context = TableContext(state=number, batch_size=[2])
        data = TensorDict({"context": context, "step": number}, [2])
        replay.extend(data)
    assert len(replay) == 4
    kept = replay.read(torch.arange(4), data)
    assert sorted(kept["step"].tolist()) == [1, 1, 2, 2]
    assert torch.equal(kept["context"].state, kept["step"])


@pytest.mark.parametrize("critic_replay", [0, 2])
def test_a_critic_update_takes_a_smaller_batch_whole(critic_replay: int) -> None:
    # 12 requests a step: 30 wrapped round would count half of them thrice, the others twice.
    whole, history = run(critic_requests=12, critic_replay=critic_replay)
    more, longer = run(critic_requests=30, critic_replay=critic_replay)
    assert same(more, whole)
    assert [m["critic_loss"] for m in longer] == [m["critic_loss"] for m in history]
    part, _ = run(critic_requests=5, critic_replay=critic_replay)
    assert not same(part, whole)


@pytest.mark.parametrize("method", ["hepo", "grpo"])
def test_fewer_requests_than_a_critic_update_takes_by_default(method: str) -> None:
    world = load_world("tiny", seed=0)
    model = build_model(world, HHDConfig(dim=16, num_heads=2, num_hsd_layers=1), 0)
    settings = replace(TrainConfig(num_requests=8), num_steps=1, critic_warmup_steps=0)
    assert settings.critic_requests > settings.num_requests
    (measures,) = train(model, world, method, settings, seed=0)
    assert ("critic_loss" in measures) == (method == "hepo")
    assert all(math.isfinite(value) for value in measures.values())


# ---- loggers


def test_the_csv_logger_gets_every_measure(tmp_path: Path) -> None:
    world = TableWorld()
    model = TablePolicy(world.num_states, 2, 3).double()
    logger = get_logger("csv", str(tmp_path), "run")
    history = train(model, world, "ppo", config(), seed=0, logger=logger)
    files = {str(p.relative_to(tmp_path / "run" / "scalars")) for p in tmp_path.rglob("*.csv")}
    assert {"reward.csv", "entropy.csv", "kl.csv", "clip_fraction.csv", "grad_norm.csv"} <= files
    assert {"explained_variance/1.csv", "value_error/2.csv", "behavior_kl.csv"} <= files
    with (tmp_path / "run" / "scalars" / "reward.csv").open() as file:
        rows = list(csv.reader(file))
    assert [int(step) for step, _ in rows] == [1, 2, 3, 4, 5, 6]
    assert [float(x) for _, x in rows] == pytest.approx([m["reward"] for m in history])


def test_the_tensorboard_logger_gets_them_too(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    world = TableWorld()
    model = TablePolicy(world.num_states, 2, 3).double()
    logger = get_logger("tensorboard", str(tmp_path), "run")
    history = train(model, world, "hepo", config(), seed=0, logger=logger)
    logger.experiment.close()
    found = EventAccumulator(str(tmp_path / "run"))
    found.Reload()
    events = found.Scalars("value_error/1")
    assert [e.step for e in events] == [1, 2, 3, 4, 5, 6]
    assert [e.value for e in events] == pytest.approx([m["value_error/1"] for m in history])


# ---- search spaces


def test_all_search_spaces_have_one_size() -> None:
    sizes = {}
    for name in method_names():
        size = 1
        for values in search_space(name).values():
            size *= len(values)
        sizes[name] = size
        assert default_learning_rate(name) in search_space(name)["learning_rate"]
    assert set(sizes.values()) == {324}, sizes


def test_a_search_space_with_a_wrong_field_is_refused() -> None:
    with pytest.raises(ValueError, match=r"search space of 'x' has unknown fields: \['speed'\]"):
        register_method("x", search_space={"speed": (1.0,)})


# ---- on the real model


@pytest.mark.parametrize(
    "changes",
    [
        {"critic_moves_trunk": True},
        {"critic_replay": 2},
        {"behavior": "gumbel"},
        {"behavior": "tree", "tree_budget": 30},
        {"popularity": "prefix"},
    ],
)
def test_the_hhd_trains_with_it(changes: dict) -> None:
    world = load_world("tiny", seed=0)

    def policy_weights(**more: object) -> list[Tensor]:
        model = build_model(world, HHDConfig(dim=16, num_heads=2, num_hsd_layers=1), 0)
        settings = TrainConfig(
            num_steps=3, num_requests=4, num_candidates=4, critic_requests=4, critic_updates=1,
            critic_warmup_steps=1, dpo_num_pairs=2, **more,
        )  # fmt: skip
        history = train(model, world, "hepo", settings, seed=0)
        assert all(value == value for m in history for value in m.values())
        return [p.detach() for p in model.policy_parameters()]

    plain, changed = policy_weights(), policy_weights(**changes)
    assert not all(torch.equal(x, y) for x, y in zip(plain, changed, strict=True))


def test_past_successes_agree_with_the_popularity_of_requests() -> None:
    world = load_world("tiny", seed=0)
    ids = world.request_ids("test")[::37]
    codes, valid = past_successes(world, ids)
    popularity = world.request(ids).popularity
    for row in range(len(ids)):
        own = codes[row][valid[row]]
        for level in range(codes.shape[2]):
            count = torch.bincount(own[:, level], minlength=popularity.shape[-1]).double()
            share = count / max(len(own), 1)
            torch.testing.assert_close(popularity[row, level].double(), share, rtol=1e-6, atol=0)
    assert valid.any(-1).float().mean() > 0.5


def test_external_knowledge_is_refused_where_nothing_passes_it() -> None:
    with pytest.raises(ValueError, match=r"knowledge_dim must be 0: warm start, .* got 4"):
        build_model(load_world("tiny"), HHDConfig(dim=16, num_heads=2, knowledge_dim=4), 0)


def test_level_weights_reach_the_loss() -> None:
    loss = SurrogateLoss.of(TrainConfig(level_weight=(0.5, 1.0, 2.0)))
    assert loss.level_weight == (0.5, 1.0, 2.0)
    assert SurrogateLoss.of(TrainConfig()).level_weight is None
    with pytest.raises(ValueError, match=r"level_weight must be \(\) for a surrogate of its own"):
        make_method("gbpo", TrainConfig(level_weight=(0.5, 1.0, 2.0)), 3)
    method, _ = make_method("hepo", TrainConfig(process_reward_scale=(1.0, 2.0)), 3)
    assert method.advantage is not None
    with pytest.raises(ValueError, match="process_reward_scale"):
        TrainConfig(process_reward_scale=(1.0, -2.0))


# ---- parts of the model with losses of their own

PARTS = {
    "refining": {"num_refining_steps": 2, "num_noise_steps": 4},
    "recursions": {"num_recursions": 2},
    "lazy": {"decoder": "lazy_ar", "num_ptd_layers": 2, "num_lazy_layers": 1},
}


def with_parts(
    sizes: dict, tmp_path: Path | None = None, **changes: object
) -> tuple[HHD, Measures]:
    world = load_world("tiny", seed=0)
    model = build_model(world, HHDConfig(dim=16, num_heads=2, num_hsd_layers=1, **sizes), 0)
    settings = {"num_steps": 3, "num_requests": 4, "num_candidates": 4, **changes}
    path = tmp_path and tmp_path / "run.safetensors"
    return model, train(
        model, world, "grpo", TrainConfig(**settings), seed=0, checkpoint_path=path, resume=True
    )  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_parts_keep_their_losses(name: str, tmp_path: Path) -> None:
    model, history = with_parts(PARTS[name])
    assert all(m["loss_parts"] > 0.0 for m in history)
    none = AuxiliaryConfig(balance=0.0, router_z=0.0, refining=0.0, trunk=0.0)
    other, without = with_parts(PARTS[name], auxiliary=none)
    assert all(m["loss_parts"] == 0.0 for m in without)
    mine, theirs = model.state_dict(), other.state_dict()
    assert not all(torch.equal(mine[key], theirs[key]) for key in mine)
    with_parts(PARTS[name], tmp_path, num_steps=1)
    again, _ = with_parts(PARTS[name], tmp_path)  # goes on to the same bits, noise included
    assert all(torch.equal(x, mine[key]) for key, x in again.state_dict().items())


def test_the_denoiser_follows_its_moving_target() -> None:
    fresh, _ = with_parts(PARTS["refining"], num_steps=1, learning_rate=1e-12)
    trained, _ = with_parts(PARTS["refining"])
    before, after = fresh.refiner.denoiser.state_dict(), trained.refiner.denoiser.state_dict()
    moved = [key for key in before if not torch.allclose(before[key], after[key], atol=1e-6)]
    assert "output.weight" in moved


def test_a_plain_model_has_no_parts() -> None:
    _, history = with_parts({})
    assert "loss_parts" not in history[0]


# ---- what a step measures


def test_the_gradient_is_measured_level_by_level() -> None:
    alone = {"kl_penalty": 0.0, "num_epochs": 1, "level_weight": (0.0, 1.0)}
    _, history = run("grpo", **alone)
    assert all(m["gradient/1"] == 0.0 < m["gradient/2"] for m in history)
    _, doubled = run("grpo", **{**alone, "level_weight": (0.0, 2.0)})
    assert doubled[0]["gradient/2"] == pytest.approx(2 * history[0]["gradient/2"])


def test_entropy_by_level_adds_up_and_equal_candidates_are_counted() -> None:
    _, history = run("grpo")
    for measures in history:
        levels = measures["entropy/1"] + measures["entropy/2"]
        assert levels == pytest.approx(measures["entropy"])
        assert 0.0 <= measures["equal_share"] < 1.0
    world = TableWorld()
    world.spoil = torch.zeros_like
    model = TablePolicy(world.num_states, 2, 3).double()
    assert train(model, world, "grpo", config(), seed=0)[0]["equal_share"] == 1.0


def test_a_baseline_per_ad_shows_how_much_it_knows() -> None:
    _, plain = run("grpo")
    _, history = run("grpo", baseline="ad")
    assert "ad_count" not in plain[0]
    counts = [measures["ad_count"] for measures in history]
    assert counts[0] == 0.0
    assert counts == sorted(counts)
    assert counts[-1] > 10.0  # 5 steps of 12 x 8 candidates over 9 ads
