"""Losses and advantages behave like torchrl's: keys, reductions, storage, compilation."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.objectives import ClipPPOLoss, LossModule, ValueEstimators
from torchrl.objectives.value import GAE

from agents.actor_critic import make_policy_head
from agents.critic import value_loss
from agents.objectives import (
    DPOLoss,
    HEPOAdvantage,
    HEPOLoss,
    LevelGAE,
    RAFTLoss,
    RSPOLoss,
    SDPOLoss,
    UnifiedLoss,
    clipped_surrogate,
    ecpo_surrogate,
    gbpo_surrogate,
    hepo_advantages,
    process_rewards,
    reinforce_surrogate,
    rspo_loss,
)

B, K, L, V = 2, 4, 3, 5
LOSSES = [HEPOLoss, DPOLoss, SDPOLoss, RAFTLoss, RSPOLoss, UnifiedLoss]


def data(seed: int = 0) -> TensorDict:
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    legal = torch.rand(B, K, L, V, generator=g) < 0.7
    codes = torch.randint(0, V, (B, K, L), generator=g)
    legal.scatter_(-1, codes[..., None], True)
    valid = torch.ones(B, K, dtype=torch.bool)
    valid[1, 2] = False
    order = torch.arange(K).expand(B, K)
    return TensorDict(
        {
            "logits": draw(B, K, L, V),
            "legal_mask": legal,
            "valid": valid,
            "codes": codes,
            "popularity": torch.rand(B, L, V, generator=g, dtype=torch.float64),
            "state_value": draw(B, K, L, 1),
            "value_target": draw(B, K, L, 1),
            "advantage": draw(B, K, L, 1),
            "action_log_prob": -draw(B, K, L).abs(),
            "terminal_reward": draw(B, K),
            "reference_log_probs": draw(B, K, L, V).log_softmax(-1),
            "chosen": order[:, :1],
            "rejected": order[:, 1:2],
            "pair_valid": torch.ones(B, 1, dtype=torch.bool),
            "next": TensorDict(
                {
                    "reward": draw(B, K, L, 1),
                    "done": torch.zeros(B, K, L, 1, dtype=torch.bool),
                    "terminated": torch.zeros(B, K, L, 1, dtype=torch.bool),
                },
                batch_size=[B],
            ),
        },
        batch_size=[B],
    )


def stored_values() -> TensorDictModule:
    """A critic whose values are in the data."""
    return TensorDictModule(lambda x: 2.0 * x, in_keys=["raw"], out_keys=["state_value"])


def renamed(module: Any, batch: TensorDict) -> tuple[dict[str, Any], TensorDict]:
    """Every key that the module knows under another name, nested ones too."""
    other = batch.clone()
    names: dict[str, Any] = {}
    for place, name in enumerate(vars(module.tensor_keys)):
        key = getattr(module.tensor_keys, name)
        names[name] = ("mine", f"{key}_2") if place % 2 else f"{key}_2"
        if key in other and name not in ("action", "valid"):
            other.set(names[name], other.pop(key))
        elif key in other:  # the networks know these by their own names
            other.set(names[name], other.get(key))
    return names, other


@pytest.mark.parametrize("kind", LOSSES)
def test_a_loss_reads_every_key_under_the_name_that_it_is_given(kind: type[LossModule]) -> None:
    loss, other = kind(make_policy_head()), kind(make_policy_head())
    assert kind.default_keys is kind._AcceptedKeys
    assert vars(loss.tensor_keys) == vars(kind.default_keys())
    names, moved = renamed(other, data())
    other.set_keys(**names)
    wanted, found = loss(data()), other(moved)
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key
    assert set(other.in_keys) != set(loss.in_keys)
    if kind is not HEPOLoss:
        assert {names[n] for n in names} <= set(other.in_keys)
    other.set_keys(**dict.fromkeys(names))
    assert other.in_keys == loss.in_keys
    with pytest.raises(ValueError, match="reward_to_go is not an accepted tensordict key"):
        loss.set_keys(reward_to_go="x")


def test_names_are_torchrls_where_it_has_one() -> None:
    ours, ppo = vars(HEPOLoss.default_keys()), vars(ClipPPOLoss.default_keys())
    shared = set(ours) & set(ppo)
    assert shared == {"action", "sample_log_prob", "advantage", "value_target", "value"}
    assert {n: ours[n] for n in shared - {"action"}} == {n: ppo[n] for n in shared - {"action"}}
    ours, gae = vars(HEPOAdvantage.default_keys()), vars(GAE.default_keys())
    shared = set(ours) & set(gae)
    assert shared == {"advantage", "value_target", "value"}
    assert {n: ours[n] for n in shared} == {n: gae[n] for n in shared}


@pytest.mark.parametrize("make", [HEPOAdvantage, LevelGAE])
def test_an_advantage_reads_and_writes_under_the_names_that_it_is_given(
    make: Callable[..., Any],
) -> None:
    plain, other = make(), make()
    wanted = plain(data())
    names, moved = renamed(other, data())
    other.set_keys(**names)
    found = other(moved)
    for name, key in vars(plain.tensor_keys).items():
        if key in plain.out_keys:
            assert torch.equal(found.get(names[name]), wanted.get(key)), name
    assert set(other.out_keys) == {
        names[n] for n, k in vars(plain.tensor_keys).items() if k in plain.out_keys
    }
    other.set_keys(**dict.fromkeys(names))
    assert (other.in_keys, other.out_keys) == (plain.in_keys, plain.out_keys)
    with pytest.raises(ValueError, match=r"rewards is not an accepted key of .*; accepted: "):
        other.set_keys(rewards="x")


@pytest.mark.parametrize("make", [HEPOAdvantage, LevelGAE])
def test_a_value_network_is_asked_for_the_values(make: Callable[..., Any]) -> None:
    batch = data()
    wanted = make()(batch.clone())
    batch["raw"] = (batch.pop("state_value") / 2.0).requires_grad_()
    module = make(stored_values())
    found = module(batch)
    for key in make().out_keys:
        assert torch.equal(found[key], wanted[key])
        assert not found[key].requires_grad
    assert torch.equal(found["state_value"], wanted["state_value"])
    assert "raw" in module.in_keys
    assert "state_value" not in module.in_keys
    assert module.out_keys[0] == "state_value"
    assert not list(module.parameters())


def test_reductions_are_torchrls() -> None:
    network = TensorDictModule(lambda x: x, in_keys=["state_value"], out_keys=["state_value"])
    out = {
        reduction: HEPOLoss(
            make_policy_head(), network, entropy_coefficient=0.1, reduction=reduction
        )(data())
        for reduction in ("mean", "sum", "none")
    }
    valid = data()["valid"]
    for key in ("loss_objective", "loss_critic", "loss_entropy"):
        each = out["none"][key]
        assert each.shape == (B, K)
        assert not each[~valid].any()
        assert each[valid].all()
        torch.testing.assert_close(each.sum(), out["sum"][key])
        torch.testing.assert_close(each.sum() / valid.sum(), out["mean"][key])
    with pytest.raises(ValueError, match="reduction must be one of"):
        HEPOLoss(make_policy_head(), reduction="median")


@pytest.mark.parametrize("surrogate", [ecpo_surrogate, gbpo_surrogate, reinforce_surrogate])
def test_other_surrogates_take_the_reduction(surrogate: Callable[..., Tensor]) -> None:
    batch = data()
    more = {"clip": 0.2} if surrogate is ecpo_surrogate else {}
    arguments = (
        -batch["action_log_prob"].square(),
        batch["action_log_prob"],
        batch["advantage"][..., 0],
    )
    each = surrogate(*arguments, valid=batch["valid"], reduction="none", **more)
    whole = surrogate(*arguments, valid=batch["valid"], **more)
    assert each.shape == (B, K)
    torch.testing.assert_close(each.sum() / batch["valid"].sum(), whole)


def test_the_critics_coefficient_multiplies_its_loss() -> None:
    network = TensorDictModule(lambda x: x, in_keys=["state_value"], out_keys=["state_value"])
    one, half = (HEPOLoss(make_policy_head(), network, critic_coeff=c)(data()) for c in (1.0, 0.5))
    batch = data()
    exact = value_loss(batch["state_value"][..., 0], batch["value_target"][..., 0], batch["valid"])
    assert torch.equal(one["loss_critic"], exact)
    torch.testing.assert_close(half["loss_critic"], exact / 2)
    assert torch.equal(one["loss_objective"], half["loss_objective"])
    with pytest.raises(ValueError, match="critic_coeff must lie in"):
        HEPOLoss(make_policy_head(), network, critic_coeff=-1.0)


@pytest.mark.parametrize("kind", LOSSES)
def test_no_loss_estimates_values(kind: type[LossModule]) -> None:
    loss = kind(make_policy_head())
    for ask in (
        lambda: loss.make_value_estimator(ValueEstimators.GAE, gamma=0.9),
        lambda: loss.make_value_estimator(),
        lambda: loss.value_estimator,
    ):
        with pytest.raises(NotImplementedError, match="HEPOAdvantage"):
            ask()


def test_weights_come_back_from_a_state_dict_and_modules_from_a_pickle() -> None:
    def loss(seed: int) -> HEPOLoss:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = TensorDictModule(torch.nn.Linear(1, 1), ["state_value"], ["state_value"])
        return HEPOLoss(make_policy_head(), network.double())

    one, other = loss(0), loss(1)
    assert one(data())["loss_critic"] != other(data())["loss_critic"]
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(data())["loss_critic"], other(data())["loss_critic"])
    assert not [name for name, _ in one.named_parameters() if "target" in name]
    one.set_keys(advantage="mine")
    advantage = HEPOAdvantage(gae_lambda=0.5)
    advantage.set_keys(value="mine")
    for again in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
        assert again.tensor_keys.advantage == "mine"
    for again in (pickle.loads(pickle.dumps(advantage)), copy.deepcopy(advantage)):
        assert (again.tensor_keys.value, again.gae_lambda) == ("mine", 0.5)


def _compiled(function: Callable[..., Any], *arguments: Any) -> None:
    torch._dynamo.reset()
    found = torch.compile(function, fullgraph=True, backend="aot_eager")(*arguments)
    wanted = function(*arguments)
    for one, other in zip(
        found if isinstance(found, tuple) else (found,),
        wanted if isinstance(wanted, tuple) else (wanted,),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_shapes")
def test_the_pure_functions_compile_as_one_graph() -> None:
    batch: TensorDictBase = data()
    log_prob, behavior = -batch["action_log_prob"].square(), batch["action_log_prob"]
    advantage, valid = batch["advantage"][..., 0], batch["valid"]
    value, target = batch["state_value"][..., 0], batch["value_target"][..., 0]
    reward, scale = batch["terminal_reward"], torch.ones(L - 1, dtype=torch.float64)
    _compiled(clipped_surrogate, log_prob, behavior, advantage, 0.2, None, valid)
    _compiled(value_loss, value, target, valid)
    _compiled(hepo_advantages, advantage[..., :-1], reward, value, 1.0, 0.95, 1e-6, True, valid)
    _compiled(process_rewards, batch["popularity"], batch["codes"], batch["legal_mask"], scale)
    _compiled(rspo_loss, log_prob.sum(-1), behavior.sum(-1), reward, 0.3, 1.0, valid)
