"""The shipped rewards by hand, and what they say where something is not known."""

import math

import numpy as np
import pytest
import torch

from simulators.rewards import Outcome, RewardMix, load_reward
from simulators.world import World

CPM, CPC, OCPA = 0, 1, 2


def three_ads(**known: torch.Tensor) -> Outcome:
    """Return one request with a CPM, a CPC and an oCPA ad.

    eCPM: 30 (the bid); 1000 * .02 * 2 = 40; 1000 * .04 * .25 * 6 = 60.
    """
    row = {
        "pctr": [0.01, 0.02, 0.04],
        "pcvr": [0.10, 0.50, 0.25],
        "bid": [30.0, 2.0, 6.0],
        "ecpm": [30.0, 40.0, 60.0],
        "price": [5.0, 10.0, 20.0],
    }
    floats = {name: torch.tensor([values], dtype=torch.float64) for name, values in row.items()}
    zero = torch.zeros(1, 3, dtype=torch.long)
    return Outcome(
        request_id=zero,
        user_id=zero,
        ad_id=torch.tensor([[0, 1, 2]]),
        bid_type=torch.tensor([[CPM, CPC, OCPA]]),
        advertiser=zero,
        category=zero,
        alpha=torch.tensor([100.0, 8.0], dtype=torch.float64).expand(1, 3, 2),
        **floats,
        **known,
        batch_size=[1, 3],
    )


KNOWN = {
    "payment": torch.tensor([[25.0, 40.0, 33.0]], dtype=torch.float64),
    "budget_left": torch.tensor([[0.0, 0.5, 1.0]], dtype=torch.float64),
    "small_advertiser": torch.tensor([[True, False, True]]),
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # eCPM + (100 pCTR + 8 pCVR) / 2
        ("final_value", [30 + 0.9, 40 + 3.0, 60 + 3.0]),
        ("ecpm", [30, 40, 60]),
        ("revenue", [25, 40, 33]),
        # 1000 * .01 * .1 * 5; 1000 * .02 * .5 * 10; 1000 * .04 * .25 * 20
        ("gmv", [5, 100, 200]),
        # 10 clicks + 1 conversion; 20 + 10; 40 + 10
        ("user_value", [11, 30, 50]),
        ("user_value_aware", [41.9, 73.0, 113.0]),
        # psi = 1 - e^0 = 0; 1 - e^-0.5; 1 - 1/e
        ("budget_aware", [0.0, 40 * 0.3934693402873666, 60 * 0.6321205588285577]),
        ("fairness", [30, 0, 60]),
    ],
)
def test_by_hand(name: str, expected: list[float]) -> None:
    _, function, _ = load_reward(name)
    assert function(three_ads(**KNOWN))[0].tolist() == pytest.approx(expected, rel=1e-12)


def test_what_is_not_known_is_not_applicable() -> None:
    outcome = three_ads()
    mix = RewardMix.from_specs(["revenue", "budget_aware=0.5", "fairness=2"])
    total, components = mix(outcome)
    assert torch.equal(components["revenue"], outcome.ecpm)
    assert components["budget_aware"].isnan().all()
    assert components["fairness"].isnan().all()
    assert torch.equal(total, outcome.ecpm)


def test_budget_aware_prefers_the_fuller_budget_at_equal_bids_and_rises_with_it() -> None:
    left = torch.linspace(0, 1, 11, dtype=torch.float64)
    ads = [three_ads(**KNOWN | {"budget_left": x.expand(1, 3)}) for x in left]
    value = torch.stack([load_reward("budget_aware")[1](o)[0] for o in ads])
    assert (value.diff(dim=0) > 0).all()
    assert (value[0] == 0).all()
    assert value[-1] / 1.0 == pytest.approx([x * (1 - 1 / math.e) for x in (30, 40, 60)])


def test_a_world_knows_payment_budgets_and_who_is_small(world: World) -> None:
    ids = world.request_ids("train")[:4]
    outcome = world.outcome(ids, torch.arange(world.num_ads).expand(4, -1))
    assert torch.equal(outcome.payment, outcome.ecpm)
    assert (outcome.budget_left == 1).all()
    # by a plain loop over ads
    budget: dict[int, float] = {}
    for advertiser, amount in zip(world.ads["advertiser"], world.ads["budget"], strict=True):
        budget[advertiser] = budget.get(advertiser, 0.0) + amount
    middle = np.median(list(budget.values()))
    small = [budget[a] < middle for a in world.ads["advertiser"]]
    assert outcome.small_advertiser.shape == outcome.ecpm.shape
    assert outcome.small_advertiser[2].tolist() == small
    assert 0 < sum(small) < world.num_ads
    half = sum(amount < middle for amount in budget.values())
    assert half == len(budget) // 2


def test_an_advertiser_without_a_limit_is_not_small(world: World) -> None:
    first = world.ads["advertiser"] == world.ads["advertiser"][0]
    budget = world.ads["budget"].astype("Float64").mask(first)
    unlimited = world.replace(ads=world.ads.assign(budget=budget))
    ads = torch.arange(world.num_ads)[None]
    small = unlimited.outcome(world.request_ids("train")[:1], ads).small_advertiser[0]
    assert not small[torch.from_numpy(first.to_numpy(copy=True))].any()
    assert small.any()


def test_parts_of_an_outcome_can_be_taken_and_set() -> None:
    outcome = three_ads(**KNOWN)
    assert outcome[:, 1:].payment.tolist() == [[40.0, 33.0]]
    outcome.payment = torch.zeros(1, 3, dtype=torch.float64)
    assert (load_reward("revenue")[1](outcome) == 0).all()
    unknown = three_ads()[:, :2]
    assert unknown.payment is None
    assert torch.cat([unknown, unknown], dim=1).budget_left is None
