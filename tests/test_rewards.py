"""Reward plug-ins: Eq. 5 by hand, weights, NaN, and the messages of bad functions."""

import pytest
import torch

from simulators.rewards import (
    Outcome,
    RewardError,
    RewardMix,
    ecpm,
    final_value,
    load_reward,
    register_reward,
)


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
