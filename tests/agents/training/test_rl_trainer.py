import dataclasses
import math
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.objectives import LossModule

import agents.registry
from agents.actor_critic import HTECritic, PolicyLogits, make_actor
from agents.methods import Method, TrainConfig, make_method, method_names, register_method
from agents.objectives import GRPOAdvantage, HEPOAdvantage, HEPOLoss
from agents.rollout import NonFiniteError, RolloutConfig, rollout, score_reference
from agents.trainer import train
from agents.training.schedule import RequestSchedule
from gpr_rl.decoding import sample_paths
from gpr_rl.schema import Request
from simulators.rewards import RewardMix
from tests.gpr_rl.models.model_inputs import SPEC, make_model, make_request
from tests.references.tabular import TablePolicy, TableWorld

REWARD = RewardMix.from_specs([])
METHODS = [
    "hepo", "hepo_terminal", "ppo", "grpo", "grpo_mean", "reinforce", "raft", "dpo", "dpo_offline",
    "sdpo", "rspo", "vsl_rspo", "ecpo", "gbpo",
]  # fmt: skip


def policy(world: TableWorld, seed: int | None = None) -> TablePolicy:
    num_levels, num_codes = world.trie.num_levels, world.trie.num_codes
    model = TablePolicy(world.num_states, num_levels, num_codes).double()
    if seed is not None:
        g = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, dtype=parameter.dtype, generator=g)
    return model


def config(**changes: object) -> TrainConfig:
    small: dict[str, object] = {
        "num_steps": 6, "num_requests": 12, "num_candidates": 8, "critic_warmup_steps": 2,
        "learning_rate": 0.05, "critic_learning_rate": 0.05, "dpo_num_pairs": 2,
        "critic_requests": 12, "kl_penalty": 0.0,
    }  # fmt: skip
    return TrainConfig(**{**small, **changes})  # type: ignore[arg-type]


def weights(model: TablePolicy) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def untimed(measures: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in measures.items() if not k.endswith("_s")}


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


# ---- rollouts


def test_rollout_holds_what_its_docstring_says() -> None:
    world = TableWorld()
    model, reference = policy(world, seed=1), policy(world)
    ids = torch.tensor([4, 7, 9, 200])
    data = rollout(model, world, ids, REWARD, RolloutConfig(num_candidates=5), 0, 3)
    score_reference(data, reference)
    assert data.batch_size == (4,)
    assert data["valid"].all()
    ads, codes, state = data["ad_id"], data["codes"], ids % world.num_states
    assert world.for_state[state[:, None], ads].all()
    assert torch.equal(world.trie.codes[ads], codes)
    torch.testing.assert_close(data["reward"], world.ecpm[state[:, None], ads])
    torch.testing.assert_close(data["terminal_reward"], data["reward"] / 2.0)
    torch.testing.assert_close(data["component", "final_value"], data["reward"])
    # The behaviour is the softmax over the legal children of the prefix, candidate by candidate.
    for b in range(4):
        eligible = world.trie.codes[world.for_state[state[b]]]
        for k in range(5):
            for level in range(2):
                prefix = codes[b, k, :level]
                here = eligible[(eligible[:, :level] == prefix).all(-1)]
                legal = torch.zeros(3, dtype=torch.bool)
                legal[here[:, level]] = True
                assert torch.equal(data["legal_mask"][b, k, level], legal)
                row = int(sum(3 ** (level - 1 - i) * c for i, c in enumerate(prefix.tolist())))
                p = model.tables[level][state[b], row].exp() * legal
                p = (p / p.sum()).detach()
                log_prob = p[codes[b, k, level]].log()
                torch.testing.assert_close(data["action_log_prob"][b, k, level], log_prob)
                entropy = -(p[legal] * p[legal].log()).sum()
                torch.testing.assert_close(data["entropy"][b, k, level], entropy)
                uniform = p[legal] * (p[legal] * legal.sum()).log()  # the reference is uniform
                torch.testing.assert_close(data["reference_kl"][b, k, level], uniform.sum())
                value = model.hte.tables[level][state[b], row].detach()
                torch.testing.assert_close(data["state_value"][b, k, level, 0], value)
    transition = data["next"]
    assert torch.equal(transition["state_value"][:, :, 0], data["state_value"][:, :, 1])
    assert transition["state_value"][:, :, -1].eq(0).all()
    assert transition["reward"][:, :, 0].eq(0).all()
    assert torch.equal(transition["reward"][:, :, -1, 0], data["terminal_reward"])
    assert transition["terminated"][:, :, -1].all()
    assert not transition["done"][:, :, 0].any()


def test_rollout_does_not_depend_on_the_batch_and_follows_the_seed() -> None:
    world = TableWorld()
    model = policy(world, seed=2)
    settings = RolloutConfig(num_candidates=6)

    def draw(ids: list[int], seed: int = 0, step: int = 0) -> Tensor:
        return rollout(model, world, torch.tensor(ids), REWARD, settings, seed, step)["codes"]

    both = draw([3, 8, 5])
    assert torch.equal(both[1:2], draw([8]))
    assert torch.equal(both, draw([3, 8, 5]))
    assert not torch.equal(both, draw([3, 8, 5], seed=1))
    assert not torch.equal(both, draw([3, 8, 5], step=1))


def test_requests_without_an_ad_hold_zeros_and_teach_nothing() -> None:
    world = TableWorld()
    world.for_state[1] = False
    model = policy(world, seed=3)
    data = rollout(
        model, world, torch.arange(6), REWARD, RolloutConfig(num_candidates=4), 0, 0
    )  # fmt: skip
    empty = torch.arange(6) % 3 == 1
    assert torch.equal(data["valid"].any(-1), ~empty)
    for key in ("action_log_prob", "entropy", "state_value", "reward", "terminal_reward"):
        assert data[key][empty].eq(0).all(), key
    before = weights(model)
    for method in METHODS:
        history = train(
            model, world, method, config(num_requests=240, num_steps=3, critic_warmup_steps=1), 0
        )
        assert all(math.isfinite(x) for step in history for x in step.values())
    after = weights(model)
    assert any(not torch.equal(x, y) for x, y in zip(before, after, strict=True))
    for x, y in zip(before, after, strict=True):
        assert torch.equal(x[1], y[1])  # no state of the empty requests moved


def test_beam_candidates_are_distinct_and_most_likely() -> None:
    world = TableWorld()
    model = policy(world, seed=4)
    data = rollout(
        model, world, torch.arange(3), REWARD,
        RolloutConfig(num_candidates=4, behavior="beam"), 0, 0,
    )  # fmt: skip
    score = data["action_log_prob"].sum(-1)
    assert (score[:, 1:] <= score[:, :-1] + 1e-12).all()
    assert all(len(set(row.tolist())) == 4 for row in data["ad_id"])


def test_the_rollouts_own_pass_serves_the_first_update() -> None:
    world = TableWorld()
    model = policy(world, seed=9)
    settings = RolloutConfig(num_candidates=5, temperature=2.0)
    data = rollout(model, world, torch.arange(6), REWARD, settings, 0, 0, keep_graph=True)
    again = PolicyLogits(model, temperature=2.0)(data.copy())
    assert torch.equal(data["logits"], again["logits"])
    sums = [x["logits"].square().sum() for x in (data, again)]
    gradients = [torch.autograd.grad(x, model.policy_parameters()) for x in sums]
    assert all(torch.equal(x, y) for x, y in zip(*gradients, strict=True))
    graphs = {key for key, x in data.items(True, True) if x.requires_grad}
    assert graphs == {"logits"}
    bare = rollout(model, world, torch.arange(6), REWARD, settings, 0, 0)
    assert not bare["logits"].requires_grad
    assert torch.equal(bare["codes"], data["codes"])


def test_temperature_flattens_the_behaviour() -> None:
    world = TableWorld()
    model = policy(world, seed=5)
    one, hot = (
        rollout(
            model, world, torch.arange(60), REWARD, RolloutConfig(temperature=temperature), 0, 0
        )["entropy"].mean()
        for temperature in (1.0, 5.0)
    )
    assert hot > one + 0.1


def test_reward_errors_name_request_and_ad() -> None:
    world = TableWorld()
    world.spoil = lambda ecpm: ecpm.clone().index_fill_(0, torch.tensor(1), math.nan)
    with pytest.raises(NonFiniteError, match=r"for request 77 must be finite, got nan"):
        rollout(
            policy(world), world, torch.tensor([5, 77]),
            lambda outcome: (outcome.ecpm, {}), RolloutConfig(), 0, 0,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_candidates": 1}, "num_candidates must be at least 2 for a z-score, got 1"),
        ({"behavior": "greedy"}, "behavior must be one of .*, got 'greedy'"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"reward_scale": -1.0}, "reward_scale must be above 0"),
        ({"clip": 1.0}, r"clip must lie in \(0, 1\)"),
        ({"discount": 1.1}, r"discount must lie in \[0, 1\]"),
        ({"num_steps": 0}, "num_steps must lie in"),
        ({"critic_requests": 0}, "critic_requests must lie in"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"popularity": "mine"}, "popularity must be one of .*, got 'mine'"),
        ({"arr_share": 1.5}, r"arr_share must lie in \[0, 1\], got 1.5"),
        ({"kl_stop": 0.0}, "kl_stop must be above 0, got 0.0"),
        ({"process_reward": "x"}, "process_reward must be one of .*, got 'x'"),
        ({"process_reward_scale": -1.0}, r"process_reward_scale must lie in"),
        ({"dpo_beta": 0.0}, "dpo_beta must be above 0, got 0.0"),
        ({"rspo_beta": -1.0}, "rspo_beta must be above 0, got -1.0"),
        ({"unified_weight": 0.0}, "unified_weight must be above 0, got 0.0"),
    ],
)
def test_bad_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("dpo", {"dpo_num_pairs": 5}, r"dpo_num_pairs must lie in \[1, 4\], got 5"),
        ("sdpo", {"sdpo_num_negatives": 8}, r"sdpo_num_negatives must lie in \[1, 7\], got 8"),
        ("raft", {"raft_num_best": 9}, r"raft_num_best must lie in \[1, 8\], got 9"),
    ],
)
def test_a_methods_own_settings_are_checked_where_it_is_used(
    method: str, changes: dict, message: str
) -> None:
    make_method("grpo", config(**changes), 2)  # nothing to grpo
    with pytest.raises(ValueError, match=message):
        make_method(method, config(**changes), 2)


# ---- actor and critic


def test_the_critic_never_moves_the_policy_nor_the_policy_the_critic() -> None:
    world = TableWorld()
    model = policy(world, seed=6)
    data = rollout(model, world, torch.arange(9), REWARD, RolloutConfig(), 0, 0)
    HEPOAdvantage()(data)
    loss = HEPOLoss(make_actor(model), HTECritic(model))
    out = loss(data)
    assert out["loss_objective"].requires_grad
    grads = torch.autograd.grad(
        out["loss_objective"], model.hte_parameters(), retain_graph=True, allow_unused=True
    )
    assert all(g is None for g in grads)
    grads = torch.autograd.grad(
        loss.loss_critic(data), model.policy_parameters(), allow_unused=True
    )
    assert all(g is None for g in grads)
    out["loss_critic"].backward()
    assert all(p.grad is None for p in model.policy_parameters())
    assert any(p.grad.abs().sum() > 0 for p in model.hte_parameters())


def test_the_actor_reproduces_the_behaviour() -> None:
    world = TableWorld()
    model = policy(world, seed=7)
    data = rollout(model, world, torch.arange(9), REWARD, RolloutConfig(temperature=2.0), 0, 0)
    distribution = make_actor(model, temperature=2.0).get_dist(data)
    torch.testing.assert_close(
        distribution.log_prob(data["codes"]), data["action_log_prob"], rtol=1e-12, atol=1e-12
    )
    with pytest.raises(ValueError, match="temperature must be above 0"):
        PolicyLogits(model, temperature=0.0)


@pytest.mark.parametrize("method", ["hepo_terminal", "ppo", "grpo"])
def test_candidates_with_positive_advantage_get_more_likely(method: str) -> None:
    world = TableWorld()
    model = policy(world, seed=8)
    data = rollout(model, world, torch.arange(1), REWARD, RolloutConfig(num_candidates=2), 0, 0)
    chosen, _ = make_method(method, config(), 2)
    chosen.advantage(data)
    data["advantage"].zero_()
    data["advantage"][0, 0] = 1.0
    batch = PolicyLogits(model)(data.copy())
    chosen.loss(batch)["loss_objective"].backward()
    with torch.no_grad():
        for p in model.policy_parameters():
            p -= 0.1 * p.grad
    after = make_actor(model).get_dist(data).log_prob(data["codes"])
    free = data["legal_mask"][0, 0].sum(-1) > 1
    assert free.any()
    assert (after[0, 0] > data["action_log_prob"][0, 0])[free].all()


# ---- the loop


@pytest.mark.parametrize("method", [m for m in METHODS if m != "dpo_offline"])
def test_every_method_finds_the_best_ads(method: str) -> None:
    world = TableWorld()
    model = policy(world)
    start = world.expected(model)
    changes = {"process_reward_scale": 0.0} if method.startswith("hepo") else {}
    settings = config(
        num_steps=50, num_requests=30, num_candidates=16, critic_warmup_steps=5,
        learning_rate=0.15, critic_learning_rate=0.3, dpo_beta=0.1, critic_requests=30, **changes,
    )  # fmt: skip
    history = train(model, world, method, settings, seed=0)
    gain = (world.expected(model) - start) / (world.best() - start)
    assert gain.min() > 0.9, gain
    assert history[-1]["reward"] > history[0]["reward"]
    assert history[-1]["kl"] > 0.1
    assert history[0]["kl"] == 0.0


def test_hepo_as_printed_learns_nothing_at_coarse_levels_without_a_critic() -> None:
    # No process reward, values fixed at 0: Eq. 8 gives 0 above the last level.
    world = TableWorld()
    model = policy(world)
    settings = config(
        num_steps=10, process_reward_scale=0.0, critic_learning_rate=1e-30, critic_warmup_steps=0
    )
    train(model, world, "hepo", settings, seed=0)
    assert model.tables[0].abs().max() < 1e-6
    assert model.tables[1].abs().max() > 1e-2


def test_all_methods_meet_the_same_requests_and_pay_the_same() -> None:
    seen: dict[str, list[Tensor]] = {}
    evaluations = {}
    for method in METHODS:
        world = TableWorld()
        seen[method] = []
        original = world.request

        def watch(ids: Tensor, log: list = seen[method], original=original) -> object:
            log.append(ids)
            return original(ids)

        world.request = watch  # type: ignore[method-assign]
        train(policy(world), world, method, config(), seed=3)
        evaluations[method] = world.num_evaluations
    assert set(evaluations.values()) == {6 * 12 * 8}
    for method in METHODS[1:]:
        assert same(seen[METHODS[0]], seen[method])


def test_warm_up_moves_the_critic_only() -> None:
    world = TableWorld()
    model = policy(world)
    history = train(model, world, "ppo", config(num_steps=2), seed=0)
    assert all(p.eq(0).all() for p in model.policy_parameters())
    assert any(p.ne(0).any() for p in model.hte_parameters())
    assert "loss" not in history[0]
    assert model.hte.reward_scale.item() == world.reward_scale


def test_a_reward_of_ones_own_is_scaled_by_its_spread() -> None:
    world = TableWorld()
    tiny = RewardMix({"tiny": lambda outcome: 1e-4 * outcome.ecpm}, {"tiny": 1.0})
    weight = []
    for reward in (tiny, REWARD):
        model = policy(world)
        train(model, world, "hepo_terminal", config(reward_scale=None), 0, reward=reward)
        weight.append(model.hte.reward_scale.item())
    assert weight[1] == world.reward_scale
    ids = RequestSchedule(torch.arange(240), 12, 0).batch(0)
    data = rollout(policy(world), world, ids, REWARD, config(), 0, 0)
    assert weight[0] == pytest.approx(1e-4 * data["reward"].std(correction=0).item())
    constant = RewardMix({"one": lambda outcome: torch.ones_like(outcome.ecpm)}, {"one": 1.0})
    history = train(policy(world), world, "ppo", config(), 0, reward=constant)
    assert history[-1]["reward"] == 1.0


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_bits(method: str) -> None:
    results = []
    for seed in (0, 0, 1):
        world = TableWorld()
        model = policy(world)
        train(model, world, method, config(), seed=seed)
        results.append(weights(model))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


@pytest.mark.parametrize(
    ("method", "changes"),
    [("hepo", {}), ("dpo", {}), ("grpo", {"baseline": "ad", "level_weight": (1.0, 2.0)})],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    method: str, changes: dict, tmp_path: Path
) -> None:
    world, dials = TableWorld(), config(**changes)
    path = tmp_path / "run.safetensors"
    whole, parts = policy(world), policy(world)
    history = train(whole, world, method, dials, 0)

    class Interrupted(Exception):
        pass

    def stop(step: int, measures: dict[str, float]) -> None:
        if step == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(
            parts, world, method, dials, 0, on_step=stop, checkpoint_path=path,
            checkpoint_every=2,
        )  # fmt: skip
    again = policy(world)
    resumed = train(again, world, method, dials, 0, checkpoint_path=path, resume=True)
    assert same(weights(whole), weights(again))
    for one, other in zip(history, resumed, strict=True):
        assert untimed(one) == untimed(other)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    world = TableWorld()
    path = tmp_path / "run.safetensors"
    train(policy(world), world, "grpo", config(num_steps=2), 0, checkpoint_path=path)
    for changes, message in (
        ({"config": config(clip=0.1)}, "clip=0.2, this run has 0.1"),
        ({"method": "dpo"}, "method='grpo', this run has 'dpo'"),
        ({"seed": 1}, "seed=0, this run has 1"),
    ):
        arguments = {"method": "grpo", "config": config(), "seed": 0, **changes}
        with pytest.raises(ValueError, match=message):
            train(policy(world), world, **arguments, checkpoint_path=path, resume=True)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=path.name):
        train(policy(world), world, "grpo", config(), 0, checkpoint_path=path, resume=True)


def test_non_finite_numbers_stop_the_run_by_name() -> None:
    world = TableWorld()
    model = policy(world)
    with torch.no_grad():
        model.tables[1][1] = math.nan
    with pytest.raises((NonFiniteError, ValueError)):
        train(model, world, "grpo", config(), 0)
    world.spoil = lambda ecpm: ecpm * math.inf
    ids = RequestSchedule(torch.arange(240), 12, 0).batch(0).tolist()
    with pytest.raises(NonFiniteError) as error:
        train(
            policy(world), world, "grpo", config(), 0,
            reward=lambda outcome: (outcome.ecpm, {}),
        )  # fmt: skip
    assert "method 'grpo', step 0: the reward of ad" in str(error.value)
    assert str(ids) in str(error.value)


def test_a_non_finite_loss_leaves_the_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    registered = dict(agents.registry._METHODS)  # this method is gone after the test
    monkeypatch.setattr(agents.registry, "_METHODS", registered)

    @register_method("explodes")
    def explodes(config: TrainConfig, num_levels: int) -> Method:
        return Method(GRPOAdvantage(), _Exploding())

    world = TableWorld()
    model = policy(world)
    before = weights(model)
    with pytest.raises(NonFiniteError, match=r"method 'explodes', step 0: the policy loss must"):
        train(model, world, "explodes", config(), 0)
    assert same(before, weights(model))
    assert method_names()[: len(METHODS)] == METHODS
    with pytest.raises(ValueError, match="unknown method 'nope'; registered: hepo, "):
        train(model, world, "nope", config(), 0)


class _Exploding(LossModule):
    def forward(self, data: TensorDict) -> TensorDict:
        return TensorDict({"loss_objective": data["logits"].sum() * math.inf})


def test_requests_are_not_repeated_within_a_round() -> None:
    schedule = RequestSchedule(torch.arange(100, 150), 12, seed=5)
    batches = [schedule.batch(step) for step in range(8)]
    for first in (0, 4):
        assert len(torch.cat(batches[first : first + 4]).unique()) == 48
    assert not torch.equal(batches[0], batches[4])
    assert torch.equal(RequestSchedule(torch.arange(100, 150), 12, seed=5).batch(6), batches[6])
    with pytest.raises(ValueError, match="num_requests must be at most the world's 50"):
        RequestSchedule(torch.arange(50), 51, seed=0)


def test_a_kl_penalty_keeps_the_policy_near() -> None:
    kls = []
    for penalty in (0.0, 3.0):
        world = TableWorld()
        settings = config(num_steps=40, critic_warmup_steps=0, kl_penalty=penalty)
        kls.append(train(policy(world), world, "ppo", settings, 0)[-1]["kl"])
    assert kls[1] < 0.5 * kls[0]


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().clip = 0.1  # type: ignore[misc]


# ---- with the real model


class TokenWorld(TableWorld):
    """The table world with requests that the HHD can read."""

    def __init__(self) -> None:
        super().__init__(num_levels=SPEC.num_levels, num_codes=SPEC.num_codes, num_requests=24)
        self.requests = make_request([6, 16, 9, 12] * 6)

    def request(self, request_id: Tensor) -> Request:
        request = self.requests[request_id]
        request.request_id = request_id
        return request


@pytest.mark.parametrize("method", ["hepo", "ppo", "dpo"])
def test_the_hhd_trains(method: str) -> None:
    world, model = TokenWorld(), make_model()
    before = [p.detach().clone() for p in model.policy_parameters()]
    settings = config(num_steps=4, kl_penalty=0.1, learning_rate=1e-2)
    history = train(model, world, method, settings, 0)
    assert all(math.isfinite(x) for step in history for x in step.values())
    moved = [not torch.equal(x, y) for x, y in zip(before, model.policy_parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2
    assert history[-1]["kl"] > 0


def test_the_hhds_sampling_and_scoring_agree() -> None:
    world, model = TokenWorld(), make_model()
    ids = torch.arange(24)
    data = rollout(model, world, ids, REWARD, RolloutConfig(temperature=1.5), 0, 0)
    eligible = world.eligible(ids)
    drawn = sample_paths(model, world.request(ids), world.trie, 16, 0, 0, eligible, 1.5)
    assert torch.equal(drawn.codes, data["codes"])
    torch.testing.assert_close(drawn.log_prob, data["action_log_prob"])
    value = model.hte(model.encode(world.request(ids)), data["codes"]).value
    torch.testing.assert_close(value, data["state_value"].squeeze(-1))


def test_no_critic_gradient_reaches_the_hhds_policy() -> None:
    world, model = TokenWorld(), make_model()
    data = rollout(model, world, torch.arange(6), REWARD, RolloutConfig(), 0, 0)
    HEPOAdvantage()(data)
    out = HEPOLoss(make_actor(model), HTECritic(model))(data)
    out["loss_critic"].backward(retain_graph=True)
    assert all(p.grad is None or p.grad.eq(0).all() for p in model.policy_parameters())
    assert any(p.grad is not None and p.grad.ne(0).any() for p in model.hte_parameters())
    model.zero_grad()
    out["loss_objective"].backward()
    assert all(p.grad is None or p.grad.eq(0).all() for p in model.hte_parameters())
