"""Reward plug-ins: Eq. 5 by hand, weights, NaN, and the messages of bad functions."""

import re

import gymnasium
import pytest
import torch

from agents.methods import TrainConfig
from agents.rollout import as_reward
from agents.trainer import train
from envs import AdRequestTorchEnv
from simulators.rewards import (
    Outcome,
    RewardError,
    RewardMix,
    ecpm,
    final_value,
    load_reward,
    register_reward,
)
from tests.references.tabular import TablePolicy, TableWorld


def make_outcome(b: int = 2, k: int = 3) -> Outcome:
    pctr = torch.linspace(0.01, 0.06, b * k).view(b, k)
    pcvr = torch.full((b, k), 0.5)
    bid = torch.full((b, k), 2.0)
    bid_type = torch.arange(k).expand(b, k) % 3
    ids = torch.arange(b)[:, None].expand(b, k)
    return Outcome(
        request_id=ids + 100,
        user_id=ids,
        ad_id=torch.arange(k).expand(b, k),
        pctr=pctr,
        pcvr=pcvr,
        bid=bid,
        bid_type=bid_type,
        ecpm=ecpm(pctr, pcvr, bid, bid_type),
        advertiser=torch.zeros(b, k, dtype=torch.long),
        category=torch.zeros(b, k, dtype=torch.long),
        price=torch.ones(b, k),
        alpha=torch.tensor([10.0, 4.0]).expand(b, k, 2),
        batch_size=[b, k],
    )


def test_ecpm_by_bid_type() -> None:
    # CPM: the bid. CPC: 1000 * .02 * 2 = 40. OCPA: 1000 * .03 * .5 * 2 = 30.
    torch.testing.assert_close(make_outcome().ecpm[0], torch.tensor([2.0, 40.0, 30.0]))


def test_final_value_by_hand() -> None:
    # 40 + (10 * .02 + 4 * .5) / 2 = 41.1
    assert final_value(make_outcome())[0, 1].item() == pytest.approx(41.1)


def test_weights_sum_nan_is_not_applicable_and_weight_zero_only_logs() -> None:
    def constant(outcome: Outcome) -> torch.Tensor:
        return torch.full_like(outcome.ecpm, 3.0)

    def sometimes(outcome: Outcome) -> torch.Tensor:
        out = torch.full_like(outcome.ecpm, 5.0)
        out[0] = torch.nan
        return out

    mix = RewardMix(
        {"constant": constant, "sometimes": sometimes, "logged": constant},
        {"constant": 2.0, "sometimes": 1.0, "logged": 0.0},
    )
    total, components = mix(make_outcome())
    assert total[0].tolist() == [6.0] * 3
    assert total[1].tolist() == [11.0] * 3
    assert components["logged"].tolist() == [[3.0] * 3] * 2
    assert components["sometimes"][0].isnan().all()
    weighted = mix.weighted(components)
    assert weighted["constant"].tolist() == [[6.0] * 3] * 2
    assert weighted["logged"].tolist() == [[0.0] * 3] * 2
    assert weighted["sometimes"][0].isnan().all()
    assert weighted["sometimes"][1].tolist() == [5.0] * 3
    torch.testing.assert_close(sum(w.nan_to_num(0.0) for w in weighted.values()), total)


def _raises(outcome: Outcome) -> torch.Tensor:
    raise KeyError("no such column")


def _infinite(outcome: Outcome) -> torch.Tensor:
    out = outcome.ecpm.clone()
    out[1, 2] = torch.inf
    return out


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_raises, r"'bad' raised KeyError: 'no such column'"),
        (lambda o: o.ecpm[:, :1], r"'bad' must return shape \(2, 3\), got \(2, 1\)"),
        (lambda o: 1.0, r"'bad' must return a tensor, got float"),
        (_infinite, r"'bad' returned inf for request 101 \(ad 2\)"),
    ],
)
def test_bad_functions_are_named(function: object, message: str) -> None:
    mix = RewardMix({"bad": function}, {"bad": 1.0})
    with pytest.raises(RewardError, match=message):
        mix(make_outcome())


class _Scaled:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, outcome: Outcome) -> torch.Tensor:
        return self.factor * outcome.ecpm


def test_errors_name_the_batch_where_no_value_is_at_fault() -> None:
    def nothing(outcome: Outcome) -> torch.Tensor:
        raise ValueError("no")

    mix = RewardMix({"bad": nothing}, {"bad": 1.0})
    with pytest.raises(RewardError, match="for the batch of request 100"):
        mix(make_outcome())
    with pytest.raises(RewardError, match="for an empty batch"):
        mix(make_outcome()[:0])


def test_objects_and_lambdas_are_rewards() -> None:
    register_reward("doubled in a test")(_Scaled(2.0))
    register_reward("tripled in a test")(lambda outcome: 3 * outcome.ecpm)
    total, _ = RewardMix.from_specs(["doubled in a test", "tripled in a test=0.5"])(make_outcome())
    torch.testing.assert_close(total, 3.5 * make_outcome().ecpm)


def test_functions_of_one_name_from_two_modules_are_two_rewards(tmp_path, monkeypatch) -> None:
    for module, factor in (("rewards_of_one", 2), ("rewards_of_two", 3)):
        text = (
            f"class F:\n    def __call__(self, o):\n        return {factor} * o.ecpm\n\nf = F()\n"
        )
        (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    total, parts = RewardMix.from_specs(["rewards_of_one:f", "rewards_of_two:f=10"])(make_outcome())
    assert set(parts) == {"rewards_of_one:f", "rewards_of_two:f"}
    torch.testing.assert_close(total, 32 * make_outcome().ecpm)


def test_a_name_stays_with_its_function(unchecked_shapes: None) -> None:
    with pytest.raises(RewardError, match=r"'final_value' is registered already, by simulators\."):
        register_reward("final_value")(ecpm)
    for _ in range(2):  # the same definition again, as in a notebook

        def again(outcome: Outcome) -> torch.Tensor:
            return outcome.ecpm

        register_reward("defined_twice_in_a_test")(again)
    assert load_reward("defined_twice_in_a_test")[1] is again
    program = "@register('from_one_file')\ndef f(outcome):\n    return outcome.ecpm\n"
    for module in ("__main__", "examples.f"):  # one file, run as a script and then imported
        names = {"__name__": module, "register": register_reward}
        exec(compile(program, "f.py", "exec"), names)
    assert load_reward("from_one_file")[1] is names["f"]
    for name in ("", "a=b", "module:f"):
        with pytest.raises(RewardError, match="must be non-empty without"):
            register_reward(name)
    with pytest.raises(RewardError, match=r"'one' must be callable, got int 1"):
        register_reward("one")(1)


def test_specs(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_module_for_rewards.py").write_text("def half(o):\n    return o.ecpm / 2\n")
    monkeypatch.chdir(tmp_path)
    name, function, weight = load_reward("my_module_for_rewards:half=0.25")
    assert name == "my_module_for_rewards:half"
    assert weight == 0.25
    assert function(make_outcome())[0, 1] == 20.0
    assert load_reward("final_value")[2] == 1.0
    register_reward("registered_in_a_test")(final_value)
    assert load_reward("registered_in_a_test=2")[1] is final_value
    for spec, message in [
        ("nothing", "unknown reward 'nothing'"),
        ("my_module_for_rewards:none", "has no function 'none'"),
        ("no_such_module_here:f", "can't import 'no_such_module_here'"),
        ("final_value=a", "weight 'a' is not a number"),
        ("final_value=", "weight '' is not a number"),
        ("final_value=nan", "weight must be finite, got nan"),
    ]:
        with pytest.raises(RewardError, match=message):
            load_reward(spec)
    with pytest.raises(RewardError, match="'ecpm' is given 2 times"):
        RewardMix.from_specs(["ecpm=0.5", "ecpm=0.5"])


def test_training_logs_each_component_before_and_after_its_weight() -> None:
    def even_only(outcome: Outcome) -> torch.Tensor:
        return torch.where(outcome.ad_id % 2 == 0, 4.0, torch.nan)

    def never(outcome: Outcome) -> torch.Tensor:
        return torch.full_like(outcome.ecpm, torch.nan)

    mix = RewardMix(
        {"ecpm": lambda o: o.ecpm, "even": even_only, "never": never, "logged": lambda o: o.pctr},
        {"ecpm": 3.0, "even": -0.5, "never": 1.0, "logged": 0.0},
    )
    config = TrainConfig(num_steps=1, num_requests=8, critic_requests=8, critic_warmup_steps=0)
    world = TableWorld(num_states=3, num_levels=2, num_codes=3)
    (measures,) = train(TablePolicy(3, 2, 3).double(), world, "grpo", config, 0, reward=mix)
    assert measures["component_weighted/ecpm"] == pytest.approx(3 * measures["component/ecpm"])
    assert measures["component/even"] == 4.0
    assert measures["component_weighted/even"] == -2.0
    assert measures["component/logged"] > 0.0
    assert measures["component_weighted/logged"] == 0.0
    assert not {name for name in measures if name.endswith("/never")}


def _outcome(world):
    ids = world.request_ids("test")[:3]
    return world.outcome(ids, torch.arange(4).expand(3, 4))


def test_a_mapping_keeps_its_weights(world):
    outcome = _outcome(world)
    total, components = RewardMix.of({"final_value": 0.0, "gmv": 5.0})(outcome)
    (_, alone) = RewardMix.of("gmv")(outcome)
    torch.testing.assert_close(total, 5.0 * alone["gmv"])
    assert list(components) == ["final_value", "gmv"]


@pytest.mark.parametrize(
    ("reward", "weights"),
    [
        (None, {"final_value": 1.0}),
        ((), {"final_value": 1.0}),
        ("gmv=2", {"gmv": 2.0}),
        (["gmv=2", "ecpm"], {"gmv": 2.0, "ecpm": 1.0}),
        (("ecpm", final_value), {"ecpm": 1.0, "final_value": 1.0}),
        ({"ecpm": 3}, {"ecpm": 3}),
        (RewardMix.from_specs(["ecpm=7"]), {"ecpm": 7.0}),
    ],
)
def test_every_way_to_write_a_reward(reward, weights):
    assert RewardMix.of(reward).weights == weights


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (3, "got int 3"),
        ({"ecpm"}, "got set"),
        (b"ecpm", "got bytes"),
        ({}, "at least one function"),
        ({"ecpm": True}, "'ecpm': weight must be a finite number, got True"),
        ({"ecpm": float("nan")}, "'ecpm': weight must be a finite number, got nan"),
        ({"ecpm": "2"}, "'ecpm': weight must be a finite number, got '2'"),
        ({"ecpm=2": 1.0}, "'ecpm=2' has a weight and is mapped to another, 1.0"),
        ({final_value: 1.0}, "from name to weight"),
        (["ecpm", 4], "got int 4"),
        (["ecpm", "ecpm=2"], "'ecpm' is given 2 times"),
        ("nothing", "unknown reward 'nothing'"),
    ],
)
def test_anything_else_is_refused(reward, message):
    with pytest.raises(RewardError, match=re.escape(message)):
        RewardMix.of(reward)


def test_environments_and_training_keep_a_mapping(world):
    mapping = {"final_value": 0.0, "gmv": 5.0}
    env = gymnasium.make("envs:gpr_rl/AdRequest-v0", world="tiny", reward=mapping)
    vector = gymnasium.make_vec(
        "envs:gpr_rl/AdRequest-v0", num_envs=2, world="tiny", reward=mapping
    )
    observed = AdRequestTorchEnv("tiny", batch_size=[2], reward=mapping)
    for mix in (e._engine.reward for e in (env.unwrapped, vector.unwrapped, observed)):
        assert mix.weights == mapping

    def plain(outcome):
        return 5.0 * outcome.ecpm

    outcome = _outcome(world)
    total, _ = as_reward(plain)(outcome)
    torch.testing.assert_close(total, 5.0 * outcome.ecpm)
    assert as_reward(mapping).weights == mapping
