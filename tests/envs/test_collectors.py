"""TorchRL's collectors, losses and batched environments with this project's actor and critic."""

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from tensordict import TensorDictBase, cat
from torch import Tensor
from torchrl.envs import (
    EnvBase,
    ExplorationType,
    GymEnv,
    ParallelEnv,
    RewardScaling,
    SerialEnv,
    TransformedEnv,
)
from torchrl.envs.common import seed_generator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from agents.code_actor import CodeCritic, CodeLogits, make_code_actor
from envs import AdDayEnv, AdDayTorchEnv, AdRequestEnv, AdRequestTorchEnv, request_from_observation
from gpr_rl.decoding import beam_search
from gpr_rl.models import HHD
from simulators.world import World
from tests.gpr_rl.models.model_inputs import make_model

with warnings.catch_warnings():  # torchrl 0.14 warns of its own classes when it is imported
    warnings.filterwarnings(
        "ignore", "Creating .* which inherits from WeightUpdaterBase", DeprecationWarning
    )
    from torchrl.collectors import Collector, MultiSyncCollector

DAY = {"num_requests": 4}
SINGLES = {"request": AdRequestEnv, "day": partial(AdDayEnv, **DAY)}
BATCHED = {"request": AdRequestTorchEnv, "day": partial(AdDayTorchEnv, **DAY)}
KINDS = pytest.mark.parametrize("kind", ["request", "day"])


@pytest.fixture(scope="module")
def model(world: World) -> HHD:
    return make_model(seed=3, spec=world.spec).eval()


def collect(
    env: EnvBase,
    model: HHD,
    num_steps: int,
    *,
    seed: int = 3,
    num_batches: int = 1,
    **kwargs: object,
) -> list[TensorDictBase]:
    frames = num_steps * env.batch_size.numel()
    env.set_seed(seed)  # before the collector, which resets at once
    collector = Collector(
        env,
        make_code_actor(model),
        frames_per_batch=frames,
        total_frames=num_batches * frames,
        auto_register_policy_transforms=False,
        **kwargs,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        batches = [batch.clone() for batch in collector]
    collector.shutdown()
    return batches


def chosen(mask: Tensor, action: Tensor) -> Tensor:
    return mask.gather(-1, action.unsqueeze(-1)).squeeze(-1)


def paths_log_prob(model: HHD, data: TensorDictBase) -> Tensor:
    """What the model says of whole paths, [B, T]; rows begin at a first code."""
    first = data[:, ::3].reshape(-1)
    codes = data["action"].reshape(-1, 1, 3)
    masks = data["action_mask"].bool().reshape(len(codes), 1, 3, -1)
    context = model.encode(request_from_observation(first))
    return model.log_prob(context, codes, masks).reshape(data.shape)


@KINDS
def test_batches_are_legal_and_their_log_probs_are_the_models(
    world: World, model: HHD, kind: str
) -> None:
    (data,) = collect(BATCHED[kind](world, [5]), model, 24)
    assert data.shape == (5, 24)
    assert data["action"].shape == data["action_log_prob"].shape == (5, 24)
    assert data["action"].dtype == torch.int64
    assert data["action_mask"].shape == (5, 24, world.spec.num_codes)
    assert data["action_mask"].dtype == torch.bool
    assert data["next", "reward"].shape == (5, 24, 1)
    assert chosen(data["action_mask"], data["action"]).all()
    assert not data["next", "illegal"].any()
    assert not data["action_mask"][data["level"] > 0].all(-1).any()  # the masks do exclude codes
    want = paths_log_prob(model, data)
    torch.testing.assert_close(data["action_log_prob"], want, rtol=1e-9, atol=1e-9)
    assert len(data["action"].unique()) > 8
    if kind == "request":
        eligible = world.eligible(data["request_id"][:, 0::3].flatten())
        second = data[:, 1::3].reshape(-1)
        legal = world.trie.legal_mask(second["prefix"][:, None, :1], eligible)[:, 0]
        assert torch.equal(second["action_mask"], legal)


@KINDS
def test_rows_go_on_over_batches_and_restart_by_themselves(
    world: World, model: HHD, kind: str
) -> None:
    """The recorded actions, played again in Gymnasium environments, give what was recorded."""
    size, seed = 3, 7
    batches = collect(BATCHED[kind](world, [size]), model, 16, seed=seed, num_batches=2)
    data = cat(batches, 1)
    ended = data["next", "done"].squeeze(-1)
    for row in range(size):
        env = SINGLES[kind](world)
        observation, info = env.reset(seed=seed + row)
        for t in range(32):
            now, after = data[row, t], data[row, t]["next"]
            np.testing.assert_array_equal(now["action_mask"], observation["action_mask"])
            np.testing.assert_array_equal(now["token_codes"], observation["token_codes"])
            assert int(now["level"]) == observation["level"]
            assert now["request_id"] == info["request_id"]
            observation, reward, terminated, truncated, info = env.step(int(now["action"]))
            assert float(after["reward"]) == pytest.approx(reward, rel=1e-6)
            assert bool(after["terminated"]) == terminated
            assert bool(after["truncated"]) == truncated
            assert int(after["level"]) == observation["level"]  # of the end, not of the new start
            assert after["ad_id"] == info.get("ad_id", -1)
            assert float(after["final_value"]) == pytest.approx(
                info.get("final_value", 0), rel=1e-6
            )
            if terminated or truncated:
                observation, info = env.reset()
    assert ended.any(1).all()
    ids = data["collector", "traj_ids"]
    assert torch.equal(ids[:, 1:] != ids[:, :-1], ended[:, :-1])
    assert data["next", "terminated" if kind == "request" else "truncated"].sum() == ended.sum()


@KINDS
def test_equal_seeds_give_equal_batches(world: World, model: HHD, kind: str) -> None:
    first, again, other = (
        collect(BATCHED[kind](world, [4]), model, 12, seed=seed)[0] for seed in (3, 3, 5)
    )
    for key in first.keys(include_nested=True, leaves_only=True):
        assert torch.equal(first[key], again[key]), key
    assert not torch.equal(first["token_codes"], other["token_codes"])


@pytest.mark.filterwarnings("ignore:split_trajs=True produces a:UserWarning")
def test_trajectories_can_be_split(world: World, model: HHD) -> None:
    (whole,) = collect(AdRequestTorchEnv(world, [4]), model, 8)
    (split,) = collect(AdRequestTorchEnv(world, [4]), model, 8, split_trajs=True)
    mask = split["collector", "mask"]
    assert split.shape == (12, 3)  # steps 1-3, 4-6 and 7-8 of every row
    assert mask.sum(1).sort().values.tolist() == [2] * 4 + [3] * 8
    assert (split["level"] == torch.arange(3)).logical_or(~mask).all()
    one = split["request_id"] == split["request_id"][:, :1]
    assert one.logical_or(~mask).all()
    total = whole["next", "reward"].sum()
    torch.testing.assert_close(split["next", "reward"][mask].sum(), total)


def test_without_exploration_the_collector_decodes_greedily(world: World, model: HHD) -> None:
    greedy = ExplorationType.DETERMINISTIC
    (data,) = collect(AdRequestTorchEnv(world, [6]), model, 3, exploration_type=greedy)
    ids = data["request_id"][:, 0]
    request, eligible = world.request(ids), world.eligible(ids)
    want = beam_search(model, request, world.trie, 1, eligible, renormalize=True)
    assert torch.equal(data["action"], want.codes[:, 0])


def test_the_critic_is_the_models_and_ends_at_zero(world: World, model: HHD) -> None:
    (data,) = collect(AdRequestTorchEnv(world, [4]), model, 3)
    critic = CodeCritic(model)
    value = critic(data.clone())["state_value"].squeeze(-1)
    context = model.encode(world.request(data["request_id"][:, 0]))
    for level in range(3):
        _, want = model.step(context, data["action"][:, None, :level])
        torch.testing.assert_close(value[:, level], want[:, 0], rtol=1e-9, atol=1e-9)
    after = critic(data["next"].clone())["state_value"].squeeze(-1)
    torch.testing.assert_close(after[:, :2], value[:, 1:], rtol=1e-9, atol=1e-9)
    assert (after[:, 2] == 0).all()
    one = critic(data[0, 1].clone())["state_value"]
    torch.testing.assert_close(one, value[0, 1, None], rtol=1e-9, atol=1e-9)


def test_temperature_divides_the_logits(world: World, model: HHD) -> None:
    state = AdRequestTorchEnv(world, [4]).reset()
    cold, hot = (CodeLogits(model, temperature=t)(state.clone())["logits"] for t in (1.0, 2.0))
    torch.testing.assert_close(cold, 2 * hot)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        make_code_actor(model, temperature=0.0)


def scaled(env: EnvBase) -> TransformedEnv:
    return TransformedEnv(env, RewardScaling(0.0, 1.0 / env.world.reward_scale))


@KINDS
def test_torchrls_gae_sees_an_episodes_end(world: World, model: HHD, kind: str) -> None:
    (data,) = collect(scaled(BATCHED[kind](world, [3])), model, 24)
    gae = GAE(gamma=0.9, lmbda=0.8, value_network=CodeCritic(model), deactivate_vmap=True)
    data = gae(data)
    value, after = data["state_value"][..., 0], data["next", "state_value"][..., 0]
    reward, ended = data["next", "reward"][..., 0], data["next", "done"][..., 0]
    want, later = torch.zeros_like(value), torch.zeros_like(value[:, 0])
    for t in reversed(range(24)):
        later = later.masked_fill(ended[:, t], 0.0)  # nothing crosses into the next episode
        worth = after[:, t].masked_fill(ended[:, t], 0.0)  # and nothing follows midnight
        later = reward[:, t] + 0.9 * worth - value[:, t] + 0.9 * 0.8 * later
        want[:, t] = later
    assert ended.any()
    assert (reward[:, 2::3] > 0).any()
    torch.testing.assert_close(data["advantage"][..., 0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("functional", [True, False])
@KINDS
def test_torchrls_ppo_takes_a_step(world: World, kind: str, functional: bool) -> None:
    model = make_model(seed=1, spec=world.spec)
    (data,) = collect(scaled(BATCHED[kind](world, [8])), model, 12)
    actor, critic = make_code_actor(model), CodeCritic(model)
    data = GAE(gamma=1.0, lmbda=0.95, value_network=critic, deactivate_vmap=True)(data)
    loss = ClipPPOLoss(actor, critic, functional=functional)
    parameters = list(loss.parameters())
    assert {p.data_ptr() for p in parameters} == {p.data_ptr() for p in model.parameters()}
    optimizer = torch.optim.SGD(parameters, lr=1e-3)

    first = loss(data)
    assert first["kl_approx"].abs() < 1e-6
    assert first["clip_fraction"] == 0.0
    first["loss_critic"].backward()
    assert all(p.grad is None or not p.grad.any() for p in model.policy_parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.hte_parameters())
    optimizer.zero_grad()
    (first["loss_objective"] + first["loss_entropy"]).backward()
    assert all(p.grad is None or not p.grad.any() for p in model.hte_parameters())

    keys = ("loss_objective", "loss_entropy", "loss_critic")
    optimizer.zero_grad()
    total = sum(loss(data)[key] for key in keys)
    total.backward()
    optimizer.step()
    later = sum(loss(data)[key] for key in keys)
    assert torch.isfinite(total)
    assert later < total


def test_the_actor_plays_wrapped_gymnasium_environments(world: World, model: HHD) -> None:
    """One unbatched day, whose mask is int8."""
    env = GymEnv(
        "envs:gpr_rl/AdDay-v0", world="tiny", categorical_action_encoding=True, num_requests=4
    )
    (data,) = collect(env, model, 24)
    assert data.shape == (24,)
    assert data["action_mask"].dtype == torch.int8
    assert chosen(data["action_mask"], data["action"]).all()
    assert data["next", "truncated"].any()
    want = paths_log_prob(model, data.unsqueeze(0))[0]
    torch.testing.assert_close(data["action_log_prob"], want, rtol=1e-9, atol=1e-9)


def test_environments_can_be_put_side_by_side(world: World, model: HHD) -> None:
    env = SerialEnv(2, partial(AdRequestTorchEnv, world, [3]))
    (data,) = collect(env, model, 6)
    check_side_by_side(data, model)


def check_side_by_side(data: TensorDictBase, model: HHD) -> None:
    assert data.shape == (2, 3, 6)
    assert not data["next", "illegal"].any()
    assert len(data["request_id"][..., 0].unique()) > 3
    want = paths_log_prob(model, data.reshape(6, 6)).view(2, 3, 6)
    torch.testing.assert_close(data["action_log_prob"], want, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_environments_can_run_in_processes(world: World, model: HHD) -> None:
    env = ParallelEnv(2, partial(AdRequestTorchEnv, "tiny", [3]), num_threads=1)
    (data,) = collect(env, model, 6)
    check_side_by_side(data, model)


@pytest.mark.slow
@KINDS
def test_workers_collect_what_one_process_would(world: World, kind: str) -> None:
    """Two processes load the world from the cache, and get new weights when told to."""
    model = make_model(seed=3, spec=world.spec).eval()
    create: Callable[[], EnvBase] = partial(BATCHED[kind], "tiny", [4])
    collector = MultiSyncCollector(
        [create, create],
        make_code_actor(model),
        frames_per_batch=2 * 4 * 12,
        cat_results=0,
        use_buffers=True,
        num_threads=1,
        num_sub_threads=1,
        auto_register_policy_transforms=False,
    )
    try:
        collector.set_seed(5)
        batches = iter(collector)
        data = next(batches).clone()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.3)
        collector.update_policy_weights_()
        later = next(batches).clone()
    finally:
        collector.shutdown()
    for batch in (data, later):
        assert batch.shape == (8, 12)
        assert chosen(batch["action_mask"], batch["action"]).all()
        assert not batch["next", "illegal"].any()
    want = paths_log_prob(model, later)
    torch.testing.assert_close(later["action_log_prob"], want, rtol=1e-9, atol=1e-9)
    before = make_model(seed=3, spec=world.spec).eval()
    for worker, seed in enumerate((5, seed_generator(5))):
        (alone,) = collect(BATCHED[kind](world, [4]), before, 12, seed=seed)
        for key in ("request_id", "action", "action_log_prob", ("next", "reward")):
            torch.testing.assert_close(data[4 * worker : 4 * worker + 4][key], alone[key])
