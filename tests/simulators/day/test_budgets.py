"""Budgets against a plain loop, and pacing over a simulated day."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.day.budgets import Budgets
from simulators.day.pacing import Pacing, PacingConfig


def loop(budget, spent, market, owner, amount, order):
    """The rule, one charge after the other, in whole billionths."""
    paid = [0.0] * len(amount)
    limit = [round(b * 10**9) for b in budget]
    for i in sorted(range(len(amount)), key=lambda i: (order[i], i)):
        place = market[i], owner[i]
        if spent[place] < limit[owner[i]]:
            spent[place] += round(amount[i] * 10**9)
            paid[i] = amount[i]
    return paid


amounts = st.one_of(st.sampled_from([0.0, 0.1, 0.25, 1.0]), st.floats(0, 5))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_equals_a_loop_and_never_overspends(data):
    num_markets, num_owners = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    budget = data.draw(st.lists(amounts, min_size=num_owners, max_size=num_owners))
    budgets = Budgets(torch.tensor(budget, dtype=torch.float64), num_markets)
    spent = dict.fromkeys(itertools.product(range(num_markets), range(num_owners)), 0)
    revenue, largest = torch.zeros(num_markets, dtype=torch.float64), 0.0
    for _ in range(data.draw(st.integers(1, 3))):  # batches of one day
        size = data.draw(st.integers(0, 20))

        def column(values, size=size):
            return data.draw(st.lists(values, min_size=size, max_size=size))

        market = column(st.integers(0, num_markets - 1))
        owner = column(st.integers(0, num_owners - 1))
        amount = column(amounts)
        order = data.draw(st.permutations(range(size)))
        expected = loop(budget, spent, market, owner, amount, order)
        shuffle = torch.tensor(data.draw(st.permutations(range(size))), dtype=torch.long)
        rows = [
            torch.tensor(market, dtype=torch.long),
            torch.tensor(owner, dtype=torch.long),
            torch.tensor(amount, dtype=torch.float64),
            torch.tensor(order, dtype=torch.long),
        ]
        paid = budgets.settle(*(row[shuffle] for row in rows))
        torch.testing.assert_close(
            paid, torch.tensor(expected, dtype=torch.float64)[shuffle], rtol=0, atol=0
        )
        revenue.index_add_(0, rows[0][shuffle], paid)
        largest = max([largest, *amount])
    got = budgets.spent
    assert (got <= budgets.daily_budget + largest + 1e-9).all()
    assert (got[:, budgets.daily_budget == 0] == 0).all()
    torch.testing.assert_close(got.sum(1), revenue, rtol=0, atol=1e-7)
    for (m, a), units in spent.items():
        assert got[m, a].item() == units / 10**9
    assert torch.equal(budgets.can_spend(), budgets.remaining() > 0)


def test_a_thousand_charges_at_once():
    # budget 100, 1,024 charges of .3: after 333 charges 99.9 are spent, the 334th is the last.
    budgets = Budgets(torch.tensor([100.0, 5.0]), num_markets=2)
    size = 1024
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(size, dtype=torch.long)
    paid = budgets.settle(ones, 0 * ones, torch.full((size,), 0.3, dtype=torch.float64), order)
    assert torch.equal(paid > 0, order < 334)
    torch.testing.assert_close(
        budgets.spent, torch.tensor([[0.0, 0.0], [100.2, 0.0]], dtype=torch.float64)
    )
    assert budgets.can_spend().tolist() == [[True, True], [False, True]]
    assert budgets.remaining().tolist() == [[100.0, 5.0], [0.0, 5.0]]
    assert budgets.settle(ones, 0 * ones, torch.ones(size)).eq(0).all()
    budgets.reset(torch.tensor([False, True]))
    assert budgets.spent.eq(0).all()


def test_decimal_sums_are_exact():
    # In binary, .1 ten times is .9999999999999999, and an eleventh charge would pass.
    budgets = Budgets(torch.tensor([1.0]))
    zero = torch.zeros(11, dtype=torch.long)
    paid = budgets.settle(zero, zero, torch.full((11,), 0.1, dtype=torch.float64))
    assert paid.tolist() == [0.1] * 10 + [0.0]
    assert budgets.spent.item() == 1.0


def test_no_limit_no_owner_no_charge():
    endless = Budgets(torch.tensor([torch.inf]))
    zero = torch.zeros(3, dtype=torch.long)
    assert endless.settle(zero, zero, torch.full((3,), 1e9, dtype=torch.float64)).sum() == 3e9
    assert endless.can_spend().item()
    assert endless.remaining().item() == torch.inf
    nobody = Budgets(torch.zeros(0), num_markets=3)
    none = torch.zeros(0, dtype=torch.long)
    assert nobody.settle(none, none, torch.zeros(0)).shape == (0,)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"daily_budget must .* got nan for owner 1"):
        Budgets(torch.tensor([1.0, torch.nan]))
    with pytest.raises(ValueError, match="num_markets must be at least 1, got 0"):
        Budgets(torch.ones(1), num_markets=0)
    budgets = Budgets(torch.ones(2))
    zero = torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"amount must .* got -1.0 in row 2"):
        budgets.settle(zero, zero, torch.tensor([0.0, 1.0, -1.0]))
    with pytest.raises(ValueError, match=r"amount must .* got nan in row 0"):
        budgets.settle(zero, zero, torch.tensor([torch.nan, 1.0, 1.0]))
    with pytest.raises(ValueError, match=r"owner must lie in \[0, 1\], got 2 in row 1"):
        budgets.settle(zero, torch.tensor([0, 2, 0]), torch.ones(3))
    with pytest.raises(ValueError, match=r"market must lie in \[0, 0\], got 1 in row 0"):
        budgets.settle(torch.tensor([1, 0, 0]), zero, torch.ones(3))
    assert budgets.spent.eq(0).all()


def day(kind, seed=0, steps=400, markets=3):
    """Spend curves [steps, M, A] of owners whose demand is 10, 4 and .5 times their budget.

    Each step every owner meets 8 auctions whose price to beat is uniform in (0, 1); it bids 1 and
    pays the price.
    """
    demand = torch.tensor([10.0, 4.0, 0.5], dtype=torch.float64)
    budget = steps * 8 * 0.5 / demand
    budgets, pacing = Budgets(budget, markets), Pacing(kind, budget, markets)
    market, owner, _ = torch.meshgrid(
        torch.arange(markets), torch.arange(3), torch.arange(8), indexing="ij"
    )
    market, owner = market.reshape(-1), owner.reshape(-1)
    rng = np.random.default_rng(seed)
    curve = []
    for step in range(steps):
        price, chance = torch.from_numpy(rng.random((2, len(market))))
        takes_part = pacing.participates(market, owner, chance)
        takes_part &= budgets.can_spend()[market, owner]
        wins = takes_part & (pacing.bid_multiplier(market, owner) > price)
        budgets.settle(market, owner, price.where(wins, 0.0))
        pacing.update(budgets.spent, torch.full((markets,), (step + 1) / steps))
        curve.append(budgets.spent / budget)
    return torch.stack(curve)


def test_pacing_spreads_spending_over_the_day():
    schedule = torch.linspace(0, 1, 401)[1:, None, None]
    off = {kind: (day(kind) - schedule).abs() for kind in ("none", "throttling", "pid")}
    short = slice(0, 2)  # owners who could not spend all day without pacing
    assert (off["none"][..., short].mean(0) > 0.3).all()
    # Fixed steps up and down swing about the schedule; the controller settles on it.
    for kind, mean, unused in (("throttling", 0.1, 0.1), ("pid", 0.03, 0.02)):
        assert (off[kind][..., short].mean(0) < mean).all(), kind
        assert (off[kind][-1, :, short] < unused).all(), kind
    # An owner with more budget than demand is not held back for long.
    assert (day("throttling")[-1, :, 2] > 0.9 * 0.5).all()
    torch.testing.assert_close(day("pid")[-1, :, 2], day("none")[-1, :, 2])


def test_no_pacing_changes_nothing():
    budget = torch.tensor([0.0, 1.0, torch.inf])
    pacing = Pacing("none", budget, 2)
    pacing.update(torch.full((2, 3), 9.0), torch.tensor([0.1, 0.5]))
    market, owner = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2])
    assert pacing.participates(market, owner, torch.full((3,), 0.999)).all()
    assert pacing.bid_multiplier(market, owner).eq(1).all()
    assert pacing.multiplier.eq(1).all()


def test_throttling_steps_by_hand():
    config = PacingConfig(interval=0.1, start=0.5, step=0.2)
    pacing = Pacing("throttling", torch.tensor([10.0, 10.0, 0.0, torch.inf]), 2, config)
    spent = torch.tensor([[0.0, 5.0, 0.0, 5.0]] * 2)
    pacing.update(spent, torch.tensor([0.2, 0.05]))  # too early for the second market
    expected = torch.tensor([[0.6, 0.4, 0.4, 0.6], [0.5] * 4], dtype=torch.float64)
    torch.testing.assert_close(pacing.multiplier, expected)
    market, owner = torch.zeros(2, dtype=torch.long), torch.tensor([0, 1])
    assert pacing.participates(market, owner, torch.tensor([0.59, 0.41])).tolist() == [True, False]
    assert pacing.bid_multiplier(market, owner).eq(1).all()
    pacing.update(spent, torch.tensor([0.2, 0.05]))  # no traffic since: nothing happens
    torch.testing.assert_close(pacing.multiplier, expected)
    pacing.reset(torch.tensor([True, False]))
    assert pacing.multiplier.eq(0.5).all()


def test_pid_by_hand_and_without_wind_up():
    config = PacingConfig(
        interval=0.0, proportional_gain=2.0, integral_gain=4.0, derivative_gain=0.1
    )
    pacing = Pacing("pid", torch.tensor([10.0]), 1, config)
    pacing.update(torch.tensor([[4.0]]), torch.tensor([0.1]).double())
    # e = .1 - .4 = -.3: 2 * -.3 + 4 * -.3 * .1 + .1 * -.3 / .1 = -.6 - .12 - .3
    at = torch.zeros(1, dtype=torch.long)
    expected = torch.tensor([-1.02], dtype=torch.float64).exp()
    torch.testing.assert_close(pacing.bid_multiplier(at, at), expected)
    assert pacing.participates(at, at, torch.tensor([0.99])).all()
    # Behind schedule for half a day, the integral stays at 0: no credit is saved up.
    config = PacingConfig(
        interval=0.0, proportional_gain=2.0, integral_gain=4.0, derivative_gain=0.0
    )
    pacing = Pacing("pid", torch.tensor([10.0]), 1, config)
    for step in range(1, 51):
        pacing.update(torch.tensor([[0.0]]), torch.tensor([step / 100]).double())
    assert pacing.multiplier.item() == 1.0
    pacing.update(torch.tensor([[9.0]]), torch.tensor([0.51]).double())
    # e = .51 - .9 = -.39: 2 * -.39 + 4 * -.39 * .01
    assert pacing.multiplier.log().item() == pytest.approx(-0.7956)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"start": 0.001}, "minimum <= start"),
        ({"step": 1.0}, r"step must lie in \[0, 1\), got 1.0"),
        ({"integral_gain": -1.0}, "integral_gain must be finite and at least 0, got -1.0"),
    ],
)
def test_bad_knobs_are_named(field, message):
    with pytest.raises(ValueError, match=message):
        PacingConfig(**field)


def test_bad_pacing_is_named(unchecked_shapes):
    with pytest.raises(ValueError, match=r"pacing must be one of .* got 'slow'"):
        Pacing("slow", torch.ones(1))
    with pytest.raises(ValueError, match=r"day_elapsed must lie in \[0, 1\]"):
        Pacing("pid", torch.ones(1)).update(torch.zeros(1, 1), torch.tensor([1.5]))
