"""Days of traffic: money, budgets, targeting and time."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpr_rl.schema import Action
from simulators.day.auction import AuctionConfig, charges
from simulators.day.conversions import PendingConversions
from simulators.day.day import DayConfig, DaySimulator
from simulators.world import World
from simulators.world.history import DAY_S

MARKETS = 3
EVERY = torch.ones(MARKETS, dtype=torch.bool)


def _begin(world: World, config: DayConfig, scale: float = 1.0, day: int = 12) -> DaySimulator:
    """Return days with the world's budgets times `scale`, their first requests open."""
    simulator = DaySimulator(world, MARKETS, config)
    budget = world.advertiser_budget * scale
    simulator.budgets = type(simulator.budgets)(budget, MARKETS)
    simulator.pacing = type(simulator.pacing)(config.pacing, budget, MARKETS)
    seed = torch.arange(MARKETS)
    simulator.begin(EVERY, seed, torch.zeros_like(seed), torch.full_like(seed, day))
    return simulator


def _choose(simulator: DaySimulator, rng: np.random.Generator) -> torch.Tensor:
    """Return a uniformly drawn eligible ad of each market whose day is not over."""
    open_rows = (~simulator.over).nonzero()[:, 0]
    return torch.tensor([rng.choice(np.flatnonzero(simulator.eligible[m])) for m in open_rows])


def _targets(ads: pd.DataFrame, user: pd.Series, day: int) -> np.ndarray:
    """Return which ads admit a user on a day, by the columns of the table."""

    def admits(column: str, value: int) -> np.ndarray:
        target = ads[column]
        return (target.isna() | (target == value)).fillna(False).to_numpy(dtype=bool)

    return (
        admits("target_gender", user["gender"])
        & admits("target_region", user["region"])
        & admits("target_device", user["device"])
        & (ads["target_age_min"].fillna(-1) <= user["age"]).to_numpy(dtype=bool)
        & (ads["target_age_max"].fillna(999) >= user["age"]).to_numpy(dtype=bool)
        & (ads["first_day"] <= day).to_numpy()
        & (ads["last_day"] >= day).to_numpy()
    )


rules_of_auctions = st.fixed_dictionaries(
    {
        "mechanism": st.sampled_from(["first_price", "second_price", "gsp"]),
        "num_slots": st.integers(1, 3),
        "reserve_cpm": st.sampled_from([0.0, 5.0, 60.0]),
    }
)
rules_of_days = st.fixed_dictionaries(
    {
        "num_rivals": st.integers(0, 4),
        "pacing": st.sampled_from(["none", "throttling", "pid"]),
        "num_requests": st.just(25),
        "conversion_delay_s": st.sampled_from([0.0, 600.0, 20_000.0]),
    }
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    auction=rules_of_auctions,
    rules=rules_of_days,
    scale=st.sampled_from([0.0, 1e-3, 0.01, 1.0]),
    seed=st.integers(0, 99),
)
def test_what_holds_on_any_day(
    world: World,
    auction: dict,
    rules: dict,
    scale: float,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = DayConfig(auction=AuctionConfig(**auction), **rules)
    taken = []
    take = PendingConversions.take

    def taking(self, markets, now):
        come = take(self, markets, now)
        taken.append(come)
        return come

    monkeypatch.setattr(PendingConversions, "take", taking)
    rng = np.random.default_rng(seed)
    simulator = _begin(world, config, scale)
    budget = simulator.budgets.daily_budget
    answered = torch.zeros(MARKETS, dtype=torch.int64)
    click_time = {}
    while not simulator.over.all():
        market = (~simulator.over).nonzero()[:, 0]
        moment, before = simulator.moment, simulator.budgets.spent.clone()
        can_spend = simulator.budgets.can_spend().clone()
        served = simulator.serve(market, _choose(simulator, rng))
        for row, m in enumerate(market.tolist()):
            legal = _targets(world.ads, world.users.iloc[int(moment.user[m])], 12)
            for slot, ad in enumerate(served.ad_id[row].tolist()):
                if ad >= 0:
                    assert legal[ad], "a shown ad admits the user"
                    assert can_spend[m, world.ad_advertiser[ad]], "its advertiser can pay"
                if served.clicked[row, slot]:
                    click_time[m, int(moment.number[m]), slot] = int(moment.time[m])
        shown, ads = served.ad_id >= 0, served.ad_id.clamp_min(0)
        at_bid = charges(
            world.bid[ads], world.bid_type[ads], shown, served.clicked, torch.zeros_like(shown)
        )
        assert (served.paid <= at_bid + 1e-9).all(), "no charge above the bid"
        spent = simulator.budgets.spent[market].sum(1) - before[market].sum(1)
        torch.testing.assert_close(spent, served.paid.sum(1), rtol=0, atol=1e-7)
        answered[market] += 1
        simulator.advance(~simulator.over)
    totals = simulator.totals
    torch.testing.assert_close(totals["revenue"], simulator.budgets.spent.sum(1), rtol=0, atol=1e-6)
    largest = world.bid.double().max()
    assert (simulator.budgets.spent <= budget + largest).all()
    assert (totals["conversions"] <= totals["clicks"]).all()
    assert (totals["advertiser_surplus"] >= -1e-9).all()
    assert (totals["num_unfilled"] + answered >= 25).all()
    for come in taken:
        for m, number, slot, time in zip(
            come.market.tolist(),
            come.number.tolist(),
            come.slot.tolist(),
            come.time.tolist(),
            strict=True,
        ):
            assert click_time[m, number, slot] <= time < 13 * DAY_S, "a conversion follows a click"
            assert time - click_time[m, number, slot] <= config.attribution_window_s


def test_a_market_depends_on_its_own_seed_and_ads_only(world: World) -> None:
    config = DayConfig(num_requests=30, num_rivals=2, auction=AuctionConfig(mechanism="gsp"))

    def play(seeds: list[int]) -> dict[int, list]:
        simulator = DaySimulator(world, len(seeds), config)
        every = torch.ones(len(seeds), dtype=torch.bool)
        seed = torch.tensor(seeds)
        simulator.begin(every, seed, seed * 0, seed * 0 + 12)
        seen: dict[int, list] = {s: [] for s in seeds}
        while not simulator.over.all():
            market = (~simulator.over).nonzero()[:, 0]
            ads = simulator.eligible[market].int().argmax(1)
            served = simulator.serve(market, ads)
            for row, m in enumerate(market.tolist()):
                seen[seeds[m]].append(
                    (int(simulator.moment.user[m]), served.ad_id[row].tolist(),
                     served.clicked[row].tolist(), served.paid[row].tolist())
                )  # fmt: skip
            simulator.advance(~simulator.over)
        return seen

    together = play([7, 8, 9])
    assert play([9, 7]) == {9: together[9], 7: together[7]}


def test_a_broke_market_ends_at_once(world: World) -> None:
    simulator = _begin(world, DayConfig(num_requests=500), scale=0.0)
    assert simulator.over.all()
    assert simulator.totals["num_unfilled"].tolist() == [500] * MARKETS


def test_unfillable_requests_are_passed_over_and_counted(world: World) -> None:
    simulator = _begin(world, DayConfig(num_requests=200))
    wanted = world.eligible_at

    def only_some_users(user_id, *args):
        return wanted(user_id, *args) & (user_id % 37 == 0)[:, None]

    world.eligible_at = only_some_users  # type: ignore[method-assign]
    try:
        simulator.begin(
            EVERY, torch.arange(MARKETS), torch.zeros(MARKETS).long(), torch.full((MARKETS,), 12)
        )
        arrivals = simulator.live.arrivals.user[:, :200]
        fillable = (arrivals % 37 == 0).sum(1)
        answered = torch.zeros(MARKETS, dtype=torch.int64)
        while not simulator.over.all():
            open_rows = ~simulator.over
            assert (simulator.moment.user[open_rows] % 37 == 0).all()
            answered += open_rows
            simulator.serve(
                open_rows.nonzero()[:, 0], simulator.eligible[open_rows].int().argmax(1)
            )
            simulator.advance(open_rows)
    finally:
        del world.eligible_at
    assert torch.equal(answered, fillable)
    assert torch.equal(simulator.totals["num_unfilled"], 200 - fillable)


def test_users_tire_of_an_advertiser(world: World) -> None:
    simulator = _begin(world, DayConfig(num_requests=1500))
    user = simulator.live.arrivals.user[0, :1500]
    busiest = int(torch.bincount(user).argmax())
    numbers = (user == busiest).nonzero()[:, 0]
    market = torch.zeros_like(numbers)
    ad = torch.zeros(len(numbers), 1, dtype=torch.int64)
    fresh, _ = simulator._reality(simulator.live.at(market, numbers), ad)
    simulator.live.record(market, numbers, ad, ad * 0 + int(Action.IMPRESSION))
    tired, _ = simulator._reality(simulator.live.at(market, numbers), ad)
    assert tired[0] == fresh[0]
    loss = torch.logit(fresh[1:, 0]) - torch.logit(tired[1:, 0])
    assert (loss > 0).all()
    counts = simulator.world.history.group_counts(
        np.array([busiest]), np.array([12 * DAY_S]), world.group[:1, 2:].numpy()
    )
    seen_before = counts[..., 1:4].sum() - counts[..., 5:].sum()
    expected = 0.25 * torch.log(
        (1 + seen_before + torch.arange(1, len(numbers))) / (1 + seen_before)
    )
    torch.testing.assert_close(loss, expected.float(), rtol=1e-3, atol=1e-3)


def test_conversions_come_later_and_after_the_window_never(world: World) -> None:
    def conversions(**rules: float) -> torch.Tensor:
        simulator = _begin(world, DayConfig(num_requests=120, **rules))
        simulator._reality = _AlwaysConverts()
        while not simulator.over.all():
            market = (~simulator.over).nonzero()[:, 0]
            simulator.serve(market, _choose(simulator, np.random.default_rng(0)))
            simulator.advance(~simulator.over)
        assert (simulator.totals["clicks"] == simulator.totals["impressions"]).all()
        return simulator.totals["conversions"] / simulator.totals["clicks"]

    assert (conversions(conversion_delay_s=0.0) == 1.0).all()
    within = conversions(conversion_delay_s=3600.0, attribution_window_s=3600.0)
    assert (within - (1 - np.exp(-1))).abs().max() < 0.15  # less what falls after midnight
    assert (conversions(conversion_delay_s=1e9) < 0.01).all()


class _AlwaysConverts:
    def __call__(self, moment, ad_id):
        ones = torch.ones(ad_id.shape)
        return ones, ones


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"num_rivals": -1}, "num_rivals must be at least 0, got -1"),
        ({"num_requests": 0}, "num_requests must be at least 1, got 0"),
        ({"conversion_delay_s": -1.0}, r"conversion_delay_s .* got -1\.0"),
    ],
)
def test_rules_out_of_range_are_named(rules, message) -> None:
    with pytest.raises(ValueError, match=message):
        DayConfig(**rules)
