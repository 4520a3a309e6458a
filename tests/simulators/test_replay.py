"""Replay against a plain loop, RLB against expectimax and enumeration, iPinYou files row by row."""

import functools
import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.replay import (
    ConstantBidder,
    LinearBidder,
    MaxCPCBidder,
    RLBBidder,
    run,
    tune_linear,
)
from simulators.replay.ipinyou import (
    LOG_COLUMNS,
    IPinYouError,
    fit_pctr,
    load_ipinyou,
    read_ipinyou,
)
from simulators.replay.rlb import RLBConfig, value_table


def make_log(price, click=None, pctr=None):
    n = len(price)
    return pd.DataFrame(
        {
            "click": np.zeros(n, dtype=int) if click is None else click,
            "market_price": price,
            "pctr": np.full(n, 0.1) if pctr is None else pctr,
        }
    )


def loop(log, bidder, budget):
    """The contract, auction by auction."""
    remaining, impressions, clicks, cost = budget, 0, 0, 0.0
    for row in log.itertuples():
        if bidder.bids(np.array([row.pctr]))[0] >= row.market_price <= remaining:
            remaining -= row.market_price
            impressions, clicks = impressions + 1, clicks + row.click
            cost += row.market_price
    return impressions, clicks, pytest.approx(cost)


prices = st.one_of(st.integers(0, 12).map(float), st.floats(0, 12))
logs = st.lists(st.tuples(st.booleans().map(int), prices, st.floats(0, 1)), max_size=40).map(
    lambda rows: pd.DataFrame(rows, columns=["click", "market_price", "pctr"])
)
bidders = st.one_of(
    st.builds(ConstantBidder, st.floats(0, 15)),
    st.builds(MaxCPCBidder, st.floats(0, 30)),
    st.builds(LinearBidder, st.floats(0, 15), st.floats(0.1, 1)),
)


@settings(max_examples=200, deadline=None)
@given(logs, bidders, st.one_of(st.integers(0, 60).map(float), st.floats(0, 60), st.just(np.inf)))
def test_equals_the_loop_on_every_route(log, bidder, budget):
    result = run(log, bidder, budget)
    assert (result.impressions, result.clicks, result.cost) == loop(log, bidder, budget)
    assert result.cost <= budget * (1 + 1e-12)

    class Aware:
        def bid(self, pctr, remaining_budget, remaining_auctions):
            assert 0 <= remaining_budget <= budget
            assert 1 <= remaining_auctions <= len(log)
            return bidder.bids(np.array([pctr]))[0]

    def plain(pctr):
        return bidder.bids(np.array([pctr]))[0]

    for other in (Aware(), plain, lambda pctr, left: plain(pctr), lambda p, b, n: plain(p)):
        same = run(log, other, budget)
        assert np.array_equal(same.won, result.won)
        assert np.array_equal(same.bids, result.bids)


def test_by_hand():
    # Budget 10, bid 6: pays 5, skips 7 (outbid), can't afford 6, pays 4, then 1, then nothing left.
    log = make_log([5, 7, 6, 4, 1, 1, 0], click=[1, 1, 1, 0, 1, 1, 1])
    result = run(log, ConstantBidder(6.0), 10.0)
    assert result.won.tolist() == [True, False, False, True, True, False, True]
    assert (result.impressions, result.clicks, result.cost) == (4, 3, 10.0)
    last = run(make_log([5, 6, 5]), ConstantBidder(6.0), 10.0)  # what is left is just enough
    assert last.won.tolist() == [True, False, True]
    assert run(log, lambda pctr: 5, 1e9).impressions == 5  # a bid equal to the price wins
    assert run(log, lambda pctr: 6, 0.0).won.nonzero()[0].tolist() == [6]  # what is free


def test_empty_log_and_zero_budget():
    empty = make_log([])
    for bidder in (ConstantBidder(1.0), lambda pctr: 1.0, RLBBidder(np.array([0.0, 1.0]), 0.1)):
        assert (run(empty, bidder, 10.0).impressions, run(empty, bidder, 10.0).cost) == (0, 0.0)
        nothing = run(make_log([1.0, 2.0]), bidder, 0.0)
        assert (nothing.impressions, nothing.clicks, nothing.cost) == (0, 0, 0.0)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("click", 2, "'click' must be 0 or 1, got 2.0 in row 1"),
        ("click", np.nan, "'click' must be 0 or 1, got nan in row 1"),
        ("market_price", -1.0, "'market_price' must be finite and at least 0, got -1.0 in row 1"),
        ("market_price", np.inf, "'market_price' must be finite"),
        ("pctr", 1.01, r"'pctr' must lie in \[0, 1\], got 1.01 in row 1"),
        ("pctr", np.nan, r"'pctr' must lie in \[0, 1\], got nan in row 1"),
        ("pctr", "much", "'pctr' .* can't be read"),
    ],
)
def test_bad_logs_are_named(column, value, message):
    log = make_log([1.0, 2.0, 3.0]).astype(object)
    log.loc[1, column] = value
    with pytest.raises(ValueError, match=message):
        run(log, ConstantBidder(1.0), 1.0)


def test_other_bad_input_is_named(unchecked_shapes):
    log = make_log([1.0, 2.0])
    with pytest.raises(ValueError, match="log lacks the column 'market_price'"):
        run(log.drop(columns="market_price"), ConstantBidder(1.0), 1.0)
    for budget in (-1.0, np.nan):
        with pytest.raises(ValueError, match="budget must be at least 0"):
            run(log, ConstantBidder(1.0), budget)
    with pytest.raises(ValueError, match="bid of auction 0 is NaN"):
        run(log, lambda pctr: np.nan, 1.0)
    with pytest.raises(TypeError, match="a bidder has a method"):
        run(log, 3.0, 1.0)
    with pytest.raises(TypeError, match="1 to 3 positional arguments"):
        run(log, lambda: 1.0, 1.0)
    with pytest.raises(ValueError, match="mean_pctr must be positive and finite, got 0"):
        LinearBidder(1.0, 0.0)
    with pytest.raises(ValueError, match="log without a click"):
        MaxCPCBidder.fit(log)


def test_bidders_by_hand():
    pctr = np.array([0.1, 0.2])
    assert ConstantBidder(3.0).bids(pctr).tolist() == [3, 3]
    assert MaxCPCBidder(50.0).bids(pctr).tolist() == [5, 10]
    assert LinearBidder(30.0, 0.1).bids(pctr) == pytest.approx([30, 60])
    log = make_log([10, 20, 30], click=[1, 0, 1], pctr=[0.1, 0.2, 0.3])
    assert MaxCPCBidder.fit(log).max_cpc == 30  # 60 paid for 2 clicks
    # b0 40 bids 20, 40, 60 and wins all three; so does b0 21 with 10.5, 21, 31.5; b0 18 bids
    # 9, 18, 27 and wins none.
    assert tune_linear(log, 60.0, [18.0, 21.0, 40.0]).base_bid == 21


def expectimax(pdf, theta):
    """V(t, b) and the largest optimal price by trying every action in every state."""

    @functools.cache
    def value(t, b):
        return (
            max(action_value(t, b, a, theta) for a in range(min(b, len(pdf) - 1) + 1)) if t else 0
        )

    def action_value(t, b, a, theta):
        return sum(
            p * (theta + value(t - 1, b - d) if d <= a else value(t - 1, b))
            for d, p in enumerate(pdf)
        )

    def best(t, b, theta_x):
        gains = range(min(b, len(pdf) - 1) + 1)
        return max(a for a in gains if theta_x + value(t - 1, b - a) - value(t - 1, b) >= -1e-12)

    return value, best


PDF = np.array([0.1, 0.0, 0.35, 0.2, 0.05, 0.3])


def test_values_equal_expectimax():
    value, best = expectimax(tuple(PDF), 0.2)
    table = value_table(PDF, 0.2, horizon=8, max_budget=25)
    expected = [[value(t, b) for b in range(26)] for t in range(8)]
    np.testing.assert_allclose(table, expected, rtol=1e-12)
    bidder = RLBBidder(PDF, 0.2, config=RLBConfig(horizon=8, max_budget=40))
    for t, b, theta_x in itertools.product(range(1, 9), range(26), (0.0, 0.03, 0.2, 0.7)):
        if b < t * 5:  # above it money does not matter
            assert bidder.bid(theta_x, float(b), t) == best(t, b, theta_x), (t, b, theta_x)
        else:
            assert bidder.bid(theta_x, float(b), t) == 5


def test_replayed_over_all_price_sequences_it_earns_its_value():
    """Expected clicks by enumeration: exactly V, and no constant bid does better."""
    num_auctions, budget, theta = 4, 6, 0.2
    value, _ = expectimax(tuple(PDF), theta)
    sequences = list(itertools.product(PDF.nonzero()[0], repeat=num_auctions))
    chance = np.array([PDF[list(s)].prod() for s in sequences])

    def expected_clicks(bidder):
        wins = [run(log, bidder, float(budget)).impressions for log in sequence_logs]
        return theta * float(chance @ wins)

    sequence_logs = [make_log(s, pctr=[theta] * num_auctions) for s in sequences]
    rlb = RLBBidder(PDF, theta, config=RLBConfig(horizon=4, max_budget=10))
    earned = expected_clicks(rlb)
    assert earned == pytest.approx(value(num_auctions, budget))
    assert earned > max(expected_clicks(ConstantBidder(float(a))) for a in range(6)) + 1e-3


def test_long_horizons_are_mapped_and_pace():
    """300 times the table's horizon: the budget lasts, and buys more than the linear bidder's."""
    rng = np.random.default_rng(0)

    def draw(n):
        pctr = rng.beta(1, 20, n)
        price = np.floor(rng.lognormal(2, 0.6, n)).clip(0, 60)
        return make_log(price, click=(rng.random(n) < pctr).astype(int), pctr=pctr)

    train, test = draw(4000), draw(15_000)
    budget = 0.1 * test["market_price"].sum()
    config = RLBConfig(horizon=50, max_budget=300)
    rlb = run(test, RLBBidder.fit(train, config), budget)
    constant = run(test, ConstantBidder(60.0), budget)
    assert 0.9 * budget < rlb.cost <= budget
    assert rlb.won[-1500:].any()  # not spent early
    assert rlb.clicks > 2 * constant.clicks
    linear = run(
        test, tune_linear(train, budget * 4000 / 15_000, np.arange(2.0, 60.0, 2.0).tolist()), budget
    )
    expected = [
        test["pctr"][result.won].sum() for result in (rlb, linear)
    ]  # less noise than clicks
    assert expected[0] > 1.02 * expected[1]


def test_prices_that_are_not_whole_are_rounded_up_to_steps():
    log = make_log([0.05, 0.1, 0.3, 0.3])
    bidder = RLBBidder.fit(log, RLBConfig(horizon=4, max_budget=9, num_prices=3))
    assert (bidder.price_step, bidder.max_price) == (pytest.approx(0.1), 3)
    np.testing.assert_allclose(bidder.value[1, 1], 0.1 * 0.5)  # a budget of one step: two of four
    assert bidder.bid(1.0, 0.3, 1) == pytest.approx(0.3)
    assert run(log, bidder, 0.3).cost <= 0.3
    with pytest.raises(ValueError, match="training log is empty"):
        RLBBidder.fit(make_log([]))
    with pytest.raises(ValueError, match=r"market_pdf must sum to 1, got 0.5"):
        RLBBidder(np.array([0.5]), 0.1)
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        RLBConfig(horizon=0)


def log_line(click=0, price=50, region=1, hour="07", extra=(), **change):
    """One row of the exact shape, in the order of the header."""
    cells = {
        "click": click,
        "weekday": 6,
        "hour": hour,
        "bidid": "81aced04baf90f358aa39a8da3bb4e2e",
        "timestamp": "20130608070012345",
        "logtype": 1,
        "ipinyouid": "Vh1OPkFQ7gk",
        "useragent": "windows_ie",
        "IP": "118.74.193.*",
        "region": region,
        "city": 25,
        "adexchange": 2,
        "domain": "trqRTJkrBoq7JsNr5SqfNX",
        "url": "249b2c34247d400ef1cd3c6bfda4f12a",
        "urlid": "null",
        "slotid": "mm_11402872_1272384_3182279",
        "slotwidth": 300,
        "slotheight": 250,
        "slotvisibility": 1,
        "slotformat": 1,
        "slotprice": 0,
        "creative": "00fccc64a1ee2809348509b7ac2a97a5",
        "bidprice": 227,
        "payprice": price,
        "keypage": "null",
        "advertiser": 3427,
        "usertag": "10684,10057,13042",
    }
    assert tuple(cells) == LOG_COLUMNS
    return "\t".join(str(v) for v in [*{**cells, **change}.values(), *extra])


HEADER = "\t".join(LOG_COLUMNS)


def write(path, lines, header=HEADER):
    path.write_text("".join(line + "\n" for line in ([header] if header else []) + lines))
    return path


def campaign(folder):
    """Region 2 clicks, region 1 does not."""
    train = [log_line(click=int(r == 2), price=10 * r, region=r) for r in (1, 2) * 30]
    test = [log_line(region=r, price=7 + r, click=r - 1, extra=(r - 1, 0)) for r in (1, 2, 1)]
    write(folder / "train.log.txt", train)
    header = "\t".join((*LOG_COLUMNS, "nclick", "nconversation"))
    return write(folder / "test.log.txt", test, header)


def test_a_campaign_becomes_a_log(tmp_path):
    log = load_ipinyou(campaign(tmp_path))
    assert log["click"].tolist() == [0, 1, 0]
    assert log["market_price"].tolist() == [8.0, 9.0, 8.0]
    assert log["pctr"][0] == log["pctr"][2] < 0.2
    assert log["pctr"][1] > 0.8
    assert run(log, MaxCPCBidder(20.0), 100.0).clicks == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["test.log.txt", "train.log.txt"]
    given_pctr = load_ipinyou(tmp_path / "test.log.txt", np.array([0.1, 0.2, 0.3]))
    assert given_pctr["pctr"].tolist() == [0.1, 0.2, 0.3]
    in_sample = load_ipinyou(tmp_path / "train.log.txt")
    assert len(in_sample) == 60
    assert in_sample["pctr"].mean() == pytest.approx(0.5, abs=1e-3)  # a logistic fit's mean is kept


def test_yzx_files(tmp_path):
    lines = [f"{int(f == 5)} {10 * f} 0:1 {f}:1 9:1" for f in (4, 5) * 30]
    write(tmp_path / "train.yzx.txt", lines, header=None)
    test = write(tmp_path / "test.yzx.txt", ["0 12 0:1 5:1", "1 7 0:1 4:1 77:1"], header=None)
    log = load_ipinyou(test)
    assert log["market_price"].tolist() == [12.0, 7.0]
    assert log["click"].tolist() == [0, 1]
    assert log["pctr"][0] > 0.6 > 0.4 > log["pctr"][1]


def test_bad_rows_are_listed_and_left_out(tmp_path):
    good = [log_line(price=p) for p in range(12)]
    bad = [
        log_line(click=2),
        log_line(price="cheap"),
        log_line(price=-3),
        log_line(hour="24"),
        "0\t1\t2",
        "",
    ]
    path = write(tmp_path / "train.log.txt", good[:6] + bad + good[6:])
    rows = read_ipinyou(path, max_bad_share=0.4)
    assert (len(rows.frame), rows.num_rows, rows.num_rejected) == (12, 18, 6)
    assert rows.frame["market_price"].tolist() == list(range(12))
    assert rows.features.shape[0] == 12
    assert rows.rejects == tmp_path / "train.log.txt.rejected.tsv"
    table = pd.read_csv(rows.rejects, sep="\t")
    assert table["file"].eq("train.log.txt").all()
    assert table["line"].tolist() == [8, 9, 10, 11, 12, 13]
    assert table["reason"].tolist() == [
        "click must be a whole number in 0..1, got '2'",
        "payprice must be a whole number, got 'cheap'",
        "payprice must be a whole number, got '-3'",
        "hour must be a whole number in 0..23, got '24'",
        "3 columns, must be 27 or two more",
        "1 columns, must be 27 or two more",
    ]
    log = load_ipinyou(path, np.linspace(0, 1, 18), max_bad_share=0.4)
    assert log["pctr"].tolist() == np.delete(np.linspace(0, 1, 18), range(6, 12)).tolist()
    with pytest.raises(IPinYouError, match=r"6 of the first 18 rows are bad, .* line 8: click"):
        load_ipinyou(path, rejects=tmp_path / "bad.tsv")
    assert len(pd.read_csv(tmp_path / "bad.tsv", sep="\t")) == 6


def test_foreign_files_are_named(tmp_path):
    with pytest.raises(IPinYouError, match=r"must end in .log.txt or .yzx.txt"):
        load_ipinyou(write(tmp_path / "train.csv", []))
    with pytest.raises(IPinYouError, match="column 1 of the header must be 'click', got 'bidid'"):
        load_ipinyou(write(tmp_path / "test.log.txt", [], "\t".join(LOG_COLUMNS[3:])))
    lonely = write(tmp_path / "test.log.txt", [log_line()])
    with pytest.raises(IPinYouError, match=r"fitted on train.log.txt beside it, which does not"):
        load_ipinyou(lonely)
    with pytest.raises(IPinYouError, match=r"one value per data row \(1\), got 2"):
        load_ipinyou(lonely, np.zeros(2))
    with pytest.raises(IPinYouError, match="got 0 clicks in 1 rows"):
        fit_pctr(read_ipinyou(lonely))
    first_season = write(
        tmp_path / "old.log.txt",
        ["\t".join(log_line().split("\t")[:25])],
        "\t".join(LOG_COLUMNS[:25]),
    )
    assert load_ipinyou(first_season, np.array([0.5]))["market_price"].tolist() == [50.0]
    empty = load_ipinyou(write(tmp_path / "empty.log.txt", []), np.zeros(0))
    assert list(empty.columns) == ["click", "market_price", "pctr"]
    assert run(empty, ConstantBidder(1.0), 1.0).impressions == 0
