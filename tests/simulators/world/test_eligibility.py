"""Who may see which ad, against a plain loop over the table of ads."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.make import make_world
from simulators.synthetic.config import PRESETS, WorldConfig
from simulators.synthetic.evaluator import TruthEvaluator
from simulators.world import World
from simulators.world.eligibility import CONTEXT_TARGETS, Targeting
from simulators.world.history import DAY_S

ASKED = {"gender": 2, "region": 6, "device": 3, "scene": 4}


def random_ads(rng: np.random.Generator, num_ads: int, share: float) -> pd.DataFrame:
    """Ads of which each asks for each attribute with the given probability."""

    def column(low: int, high: int) -> pd.Series:
        values = pd.Series(rng.integers(low, high, num_ads), dtype="Int64")
        return values.where(rng.random(num_ads) < share)

    columns = {f"target_{name}": column(0, size) for name, size in ASKED.items()}
    columns |= {"target_age_min": column(18, 60), "target_age_max": column(25, 80)}
    columns |= {"target_hour_start": column(0, 24), "target_hour_end": column(0, 24)}
    first = rng.integers(0, 6, num_ads)
    return pd.DataFrame(columns).assign(
        first_day=first, last_day=first + rng.integers(0, 6, num_ads)
    )


def admits(ad: pd.Series, asker: dict[str, int]) -> bool:
    def asks(name: str) -> bool:
        return f"target_{name}" in ad and not pd.isna(ad[f"target_{name}"])

    legal = ad.first_day <= asker["day"] <= ad.last_day
    for name in ASKED:
        legal &= not asks(name) or ad[f"target_{name}"] == asker[name]
    legal &= not asks("age_min") or ad.target_age_min <= asker["age"]
    legal &= not asks("age_max") or asker["age"] <= ad.target_age_max
    start = ad.target_hour_start if asks("hour_start") else 0
    end = ad.target_hour_end if asks("hour_end") else 23
    span = range(start, end + 1) if start <= end else [*range(start, 24), *range(end + 1)]
    return bool(legal) and asker["hour"] in span


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_ads=st.integers(1, 12),
    share=st.sampled_from([0.0, 0.3, 0.9]),
    known=st.sampled_from([(), CONTEXT_TARGETS[:2], CONTEXT_TARGETS[2:], CONTEXT_TARGETS]),
)
def test_eligible_ads_equal_a_plain_loop(
    seed: int, num_ads: int, share: float, known: tuple[str, ...]
) -> None:
    rng = np.random.default_rng(seed)
    ads = random_ads(rng, num_ads, share)
    ads = ads.drop(columns=[name for name in CONTEXT_TARGETS if name not in known])
    # values that no ad names, ages outside every range, days before and after all ads
    sizes = {**{k: n + 2 for k, n in ASKED.items()}, "age": 130, "day": 14, "hour": 24}
    askers = {name: rng.integers(0, size, 30) for name, size in sizes.items()}
    askers["day"] -= 1
    tensors = {name: torch.from_numpy(values) for name, values in askers.items()}
    got = Targeting.from_ads(ads).eligible(**tensors)
    assert got.dtype == torch.bool
    for row in range(30):
        asker = {name: int(values[row]) for name, values in askers.items()}
        want = [admits(ad, asker) for _, ad in ads.iterrows()]
        assert got[row].tolist() == want, asker


def test_without_a_place_and_time_only_the_user_counts() -> None:
    ads = random_ads(np.random.default_rng(0), 50, 0.5)
    plain = ads.drop(columns=list(CONTEXT_TARGETS))
    user = {"day": 3, "age": 40, "gender": 1, "region": 2, "device": 0}
    asker = {name: torch.tensor([value]) for name, value in user.items()}
    got = Targeting.from_ads(ads).eligible(**asker)
    assert torch.equal(got, Targeting.from_ads(plain).eligible(**asker))
    assert not Targeting.from_ads(plain).uses_context
    assert Targeting.from_ads(ads).uses_context
    hours = [torch.tensor([3])]
    everywhere = Targeting.from_ads(ads.drop(columns="target_scene"))
    both = everywhere.eligible(*asker.values(), *hours, torch.tensor([0]))
    assert torch.equal(Targeting.from_ads(ads).eligible(*asker.values(), *hours), both)


def test_ads_that_ask_for_nothing_admit_everyone_and_nobody_may_be_left() -> None:
    ads = random_ads(np.random.default_rng(1), 1, 0.0).assign(first_day=2, last_day=2)
    days = torch.arange(5)
    zero = torch.zeros_like(days)
    got = Targeting.from_ads(ads).eligible(days, zero, zero, zero, zero, zero, zero)
    assert got[:, 0].tolist() == [False, False, True, False, False]
    assert Targeting.from_ads(ads).eligible(*[zero[:0]] * 5).shape == (0, 1)


def test_a_bad_hour_is_named() -> None:
    ads = random_ads(np.random.default_rng(1), 3, 0.0).assign(target_hour_end=[3, 24, 1])
    with pytest.raises(ValueError, match=r"target_hour_end must lie in 0\.\.23, got 24"):
        Targeting.from_ads(ads)
    with pytest.raises(ValueError, match="context_targeting_share must lie in"):
        WorldConfig(context_targeting_share=-0.1)


@pytest.fixture(scope="module")
def context_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    config = replace(PRESETS["tiny"], num_users=60, context_targeting_share=0.6)
    return make_world(config, 0, tmp_path_factory.mktemp("worlds") / "context")


def test_logs_respect_hours_and_scenes(context_world: World) -> None:
    world = context_world
    asks = world.ads[list(CONTEXT_TARGETS)].notna()
    assert 0.5 < asks.any(axis=1).mean() < 0.7
    ids = torch.arange(world.num_requests)
    legal = world.eligible(ids)
    assert legal.gather(1, world.request_ad[:, None]).all()
    scene, _, hour, _ = world.request_context[:20].T
    users = world.users.iloc[world.request_user[:20]]
    for row in range(20):
        asker = {name: int(users.iloc[row][name]) for name in ("age", "gender", "region", "device")}
        asker |= {"day": world.request_time[row] // DAY_S, "hour": hour[row], "scene": scene[row]}
        assert legal[row].tolist() == [admits(ad, asker) for _, ad in world.ads.iterrows()]


def test_propensities_are_those_of_the_cascade_in_that_hour_and_scene(context_world: World) -> None:
    world = context_world
    ids = torch.arange(0, world.num_requests, 5)
    distribution = TruthEvaluator(world).logging_distribution(ids)
    stored = world.events.loc[world.events["kind"] == 1, "propensity"].to_numpy()[ids.numpy()]
    shown = distribution.gather(1, world.request_ad[ids, None])[:, 0]
    np.testing.assert_allclose(shown, stored, rtol=1e-4)


def test_requests_with_one_key_may_see_the_same_ads(context_world: World, world: World) -> None:
    for each in (context_world, world):
        ids = torch.arange(0, each.num_requests, 3)
        key, row = each.signature(ids).unique(return_inverse=True)
        example = ids.new_zeros(len(key)).scatter_(0, row, ids)
        assert torch.equal(each.eligible(example)[row], each.eligible(ids))
        assert len(key) < len(ids)
