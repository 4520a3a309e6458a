"""Auctions against hand-worked numbers, a plain loop and facts of auction theory."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.day.auction import MECHANISMS, AuctionConfig, charges, run_auction
from simulators.rewards.outcome import ecpm


def draw(seed, b, k, ties=True):
    """Random candidates; with `ties`, few distinct values, zeros among them."""
    rng = np.random.default_rng(seed)
    if ties:
        pctr = rng.choice([0.0, 0.01, 0.02, 0.5, 1.0], (b, k))
        pcvr = rng.choice([0.0, 0.1, 1.0], (b, k))
        bid = rng.choice([0.0, 0.5, 1.0, 2.0, 20.0], (b, k))
    else:
        pctr, pcvr, bid = rng.random((b, k)), rng.random((b, k)), rng.lognormal(size=(b, k))
    return {
        "pctr": torch.from_numpy(pctr),
        "pcvr": torch.from_numpy(pcvr),
        "bid": torch.from_numpy(bid),
        "bid_type": torch.from_numpy(rng.integers(0, 3, (b, k))),
        "valid": torch.from_numpy(rng.random((b, k)) < 0.8),
        "tie_break": torch.from_numpy(rng.random((b, k))),
    }


cases = st.builds(draw, st.integers(0, 2**31), st.integers(1, 4), st.integers(0, 7), st.booleans())
rules = st.fixed_dictionaries(
    {
        "mechanism": st.sampled_from(MECHANISMS),
        "num_slots": st.integers(1, 9),
        "reserve_cpm": st.sampled_from([0.0, 1.0, 10.0, 500.0]),
    }
)


def per_unit(pctr, pcvr, bid_type):
    return {0: 1.0, 1: 1000 * pctr, 2: 1000 * pctr * pcvr}[bid_type]


def wins(row, candidate, bid, config):
    """Rank of a candidate that bids `bid` per event, everyone else as given; None if not ranked."""
    entries = []
    for k in range(len(row["bid"])):
        own = bid if k == candidate else row["bid"][k]
        score = round(own * per_unit(row["pctr"][k], row["pcvr"][k], row["bid_type"][k]), 6)
        if row["valid"][k] and score >= config.reserve_cpm:
            entries.append((-score, row["tie_break"][k], k))
    ranking = [k for _, _, k in sorted(entries)]
    return ranking.index(candidate) if candidate in ranking else None


@settings(max_examples=150, deadline=None)
@given(cases, rules)
def test_equals_the_definition(case, rule):
    """Winners by sorting; a price is the least bid that would still do, found by trying bids."""
    config = AuctionConfig(**rule)
    result = run_auction(config=config, **case)
    for b in range(len(case["bid"])):
        row = {name: value[b].tolist() for name, value in case.items()}
        rank = {k: wins(row, k, row["bid"][k], config) for k in range(len(row["bid"]))}
        expected = sorted((r, k) for k, r in rank.items() if r is not None)[: config.num_slots]
        winners = [k for _, k in expected] + [-1] * (config.num_slots - len(expected))
        assert result.slot_candidate[b].tolist() == winners
        for slot, k in enumerate(winners):
            price = result.price[b, slot].item()
            if k < 0:
                assert price == 0.0
                continue
            assert 0.0 <= price <= row["bid"][k]
            if config.mechanism == "first_price":
                assert price == row["bid"][k]
                continue
            # the last place that still counts: the slot itself, or any slot under second price
            last = slot if config.mechanism == "gsp" else config.num_slots - 1
            rate = per_unit(row["pctr"][k], row["pcvr"][k], row["bid_type"][k])
            if rate == 0.0:
                assert price == 0.0
                continue
            above = wins(row, k, price + 2e-6 / rate, config)
            assert above is not None
            assert above <= last
            below = wins(row, k, price - 2e-6 / rate, config) if price > 2e-6 / rate else None
            assert below is None or below > last


def test_prices_by_hand():
    # eCPM: CPC 1000 * .02 * 1 = 20, CPM 12, OCPA 1000 * .1 * .05 * 2 = 10, CPC 1000 * .01 * .5 = 5.
    pctr = torch.tensor([[0.02, 0.03, 0.1, 0.01]])
    pcvr = torch.tensor([[0.3, 0.3, 0.05, 0.3]])
    bid = torch.tensor([[1.0, 12.0, 2.0, 0.5]])
    bid_type = torch.tensor([[1, 0, 2, 1]])
    effect = (1.0, 0.5, 0.25)

    def run(mechanism, slots, reserve=0.0):
        config = AuctionConfig(
            mechanism=mechanism,
            num_slots=slots,
            reserve_cpm=reserve,
            position_effect=effect[:slots],
        )
        return run_auction(pctr.double(), pcvr.double(), bid.double(), bid_type, config)

    def close(got, *expected):
        torch.testing.assert_close(got, torch.tensor([expected], dtype=torch.float64))

    first = run("first_price", 3)
    close(first.price, 1.0, 12.0, 2.0)
    close(first.price_cpm, 20.0, 12.0, 2.5)  # the CPM bid pays for impressions, not clicks
    gsp = run("gsp", 3)
    close(gsp.price, 12 / 20, 10.0, 1.0)  # 12 / (1000 * .02); 10; 5 / (1000 * .1 * .05)
    close(gsp.price_cpm, 12.0, 10.0, 1.25)
    uniform = run("second_price", 3)
    close(uniform.price, 5 / 20, 5.0, 1.0)
    close(run("second_price", 1).price, 12 / 20)
    reserve = run("gsp", 3, reserve=11.0)
    assert reserve.slot_candidate.tolist() == [[0, 1, -1]]
    close(reserve.price, 12 / 20, 11.0, 0.0)
    assert run("gsp", 1, reserve=20.5).slot_candidate.tolist() == [[-1]]
    assert first.score.dtype == first.price.dtype == torch.float64


@settings(max_examples=60, deadline=None)
@given(cases, rules, st.integers(0, 1000))
def test_permuting_candidates_changes_nothing(case, rule, seed):
    config = AuctionConfig(**rule)
    num_candidates = case["bid"].shape[1]
    order = torch.randperm(num_candidates, generator=torch.Generator().manual_seed(seed))
    result = run_auction(config=config, **case)
    moved = run_auction(config=config, **{name: x[:, order] for name, x in case.items()})
    back = torch.cat([order, order.new_tensor([-1])])[moved.slot_candidate]
    assert torch.equal(back, result.slot_candidate)
    assert torch.equal(moved.price, result.price)
    assert torch.equal(moved.price_cpm, result.price_cpm)


@settings(max_examples=60, deadline=None)
@given(cases, rules, st.integers(0, 2**31))
def test_charges_never_exceed_bids_and_add_up(case, rule, seed):
    config = AuctionConfig(**rule)
    result = run_auction(config=config, **case)
    shown = result.slot_candidate >= 0
    if not case["bid"].shape[1]:
        assert not shown.any()
        return
    slot = result.slot_candidate.clamp_min(0)
    assert case["valid"].gather(1, slot)[shown].all()
    bid, bid_type = case["bid"].gather(1, slot), case["bid_type"].gather(1, slot)
    rng = np.random.default_rng(seed)
    click = shown & torch.from_numpy(rng.random(tuple(slot.shape)) < 0.6)
    conversion = click & torch.from_numpy(rng.random(tuple(slot.shape)) < 0.6)
    paid = charges(result.price, bid_type, shown, click, conversion)
    surplus = charges(bid, bid_type, shown, click, conversion) - paid
    assert (surplus >= 0).all()
    # what changes hands is neither made nor lost
    worth = (bid * torch.stack([shown / 1000.0, click, conversion])).gather(0, bid_type[None])[0]
    torch.testing.assert_close(paid + surplus, worth)
    if config.mechanism == "first_price":
        assert surplus.eq(0).all()


def test_price_cpm_is_the_expected_charge():
    case = draw(3, 5, 6, ties=False)
    effect = torch.tensor([1.0, 0.6, 0.1])
    config = AuctionConfig(mechanism="gsp", num_slots=3, position_effect=(1.0, 0.6, 0.1))
    result = run_auction(config=config, **{**case, "valid": None})
    pctr, pcvr, bid_type = (
        case[name].gather(1, result.slot_candidate) for name in ("pctr", "pcvr", "bid_type")
    )
    shown = torch.ones_like(pctr)
    click = pctr * effect
    expected = charges(result.price, bid_type, shown, click, click * pcvr)
    torch.testing.assert_close(1000 * expected, result.price_cpm)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 8))
def test_mechanisms_order_as_theory_says(seed, slots, candidates):
    """At equal bids: first price >= GSP >= VCG, GSP >= uniform (Edelman et al. 2007)."""
    case = draw(seed, 3, candidates, ties=False)
    case["bid_type"] = torch.ones_like(case["bid_type"])  # position effects for every bid
    case["valid"] = None

    def run(mechanism):
        return run_auction(
            config=AuctionConfig(mechanism=mechanism, num_slots=slots), **case
        ).price_cpm

    first, gsp, uniform = run("first_price"), run("gsp"), run("second_price")
    score = ecpm(case["pctr"], case["pcvr"], case["bid"], case["bid_type"])
    ranked = score.sort(dim=1, descending=True).values
    ranked = torch.nn.functional.pad(ranked, (0, slots + 1))
    effect = [math.exp(-0.25 * s) for s in range(slots)] + [0.0]
    vcg = torch.stack(
        [
            sum((effect[j] - effect[j + 1]) * ranked[:, j + 1] for j in range(s, slots))
            for s in range(slots)
        ],
        dim=1,
    )  # what a winner's presence costs those below it
    slack = 1e-9 * first.max()
    assert (first >= gsp - slack).all()
    assert (gsp >= vcg - slack).all()
    assert (gsp >= uniform - slack).all()
    if slots == 1:
        torch.testing.assert_close(gsp, vcg)
        assert torch.equal(gsp, uniform)


def test_ties_go_by_the_draw_then_by_the_index():
    pctr = torch.full((2, 3), 0.1, dtype=torch.float64)
    bid = torch.tensor([[1.0, 1.0 + 1e-10, 1.0]] * 2, dtype=torch.float64)  # equal to 1e-6 in eCPM
    bid_type = torch.ones(2, 3, dtype=torch.long)
    config = AuctionConfig(mechanism="gsp", num_slots=3)
    draws = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.3, 0.1]], dtype=torch.float64)
    by_draw = run_auction(pctr, pctr, bid, bid_type, config, tie_break=draws)
    assert by_draw.slot_candidate.tolist() == [[2, 1, 0], [2, 0, 1]]
    assert (by_draw.price <= bid.gather(1, by_draw.slot_candidate)).all()
    by_index = run_auction(pctr, pctr, bid, bid_type, config)
    assert by_index.slot_candidate.tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_zeros_and_missing_candidates_are_no_nan(mechanism):
    zero = torch.zeros(2, 3)
    types = torch.tensor([[0, 1, 2]] * 2)
    valid = torch.tensor([[True, True, True], [False, False, False]])
    config = AuctionConfig(mechanism=mechanism, num_slots=4)
    noise = torch.full((2, 3), torch.nan).where(~valid, 0.0)  # what is not valid may hold anything
    result = run_auction(zero + noise, zero + noise, zero + noise, types, config, valid=valid)
    assert result.slot_candidate.tolist() == [[0, 1, 2, -1], [-1] * 4]
    assert result.price.eq(0).all()
    assert result.price_cpm.eq(0).all()
    assert result.score.eq(0).all()
    reserved = AuctionConfig(mechanism=mechanism, reserve_cpm=1.0)
    unsold = run_auction(zero, zero, zero + 1, types, reserved)  # only the CPM bid is worth 1
    assert unsold.slot_candidate.tolist() == [[0], [0]]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pctr", math.nan, r"pctr must lie in \[0, 1\], got nan in row 1, candidate 2"),
        ("pctr", 1.5, r"pctr must lie in \[0, 1\], got 1.5 in row 1"),
        ("pcvr", -0.5, r"pcvr must lie in \[0, 1\], got -0.5 in row 1"),
        ("bid", -1.0, "bid must be finite and not negative, got -1.0 in row 1, candidate 2"),
        ("bid", math.inf, "bid must be finite and not negative, got inf"),
        ("bid_type", 3, "bid_type must be 0 .* got 3 in row 1, candidate 2"),
    ],
)
def test_bad_input_is_named(name, value, message):
    case = draw(0, 2, 3)
    case["valid"] = None
    case[name][1, 2] = value
    with pytest.raises(ValueError, match=message):
        run_auction(config=AuctionConfig(), **case)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"mechanism": "vcg"}, "mechanism must be one of .* got 'vcg'"),
        ({"num_slots": 0}, "num_slots must be at least 1, got 0"),
        ({"reserve_cpm": math.nan}, "reserve_cpm must be finite"),
        ({"num_slots": 2, "position_effect": (1.0,)}, "one entry per slot"),
        ({"num_slots": 2, "position_effect": (1.0, 1.1)}, "never rise"),
        ({"num_slots": 2, "position_effect": (1.0, 0.0)}, "stay above 0"),
        ({"position_effect": (0.9,)}, "start at 1"),
    ],
)
def test_bad_rules_are_named(field, message, unchecked_shapes):
    with pytest.raises(ValueError, match=message):
        AuctionConfig(**field)
