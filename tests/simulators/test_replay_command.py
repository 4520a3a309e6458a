"""`python -m simulators.replay` on logs of four auctions, with figures worked by hand."""

import json
import sys
from pathlib import Path

import pytest

from simulators.replay.__main__ import main

TEST = "click,market_price,pctr\n1,10,0.2\n0,20,0.1\n1,30,0.3\n0,40,0.2\n"
TRAIN = "click,market_price,pctr\n1,10,0.2\n0,20,0.1\n"


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Return a function from flags to exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    Path("test.csv").write_text(TEST)
    Path("train.csv").write_text(TRAIN)

    def call(*flags):
        monkeypatch.setattr(sys, "argv", ["replay", *flags])
        status = main()
        return status, *capsys.readouterr()

    return call


def kept(*names):
    rows = json.loads(Path("out.json").read_text())["bidders"]
    assert [row["bidder"] for row in rows] == list(names)
    return [tuple(row.values())[1:] for row in rows]


def test_by_hand(command):
    """Half of the cost of 100 is 50.

    A constant 30 buys 10 and 20, can't pay 30 of the 20 left, and is outbid at 40. 100 a click
    bids 20, 10, 30, 20 and buys 10 and 30. The linear bidder has 25 for the two training auctions
    (mean pctr .15); base bid 6 bids 8 for the click and 8 bids 10.7, so 8 is the lowest that gets
    it; in the log it bids 10.7, 5.3, 16, 10.7 and buys the first.
    """
    flags = ["--bidder", "constant", "max_cpc", "linear", "--price", "30", "--max-cpc", "100"]
    status, out, error = command(
        "test.csv", *flags, "--budget", "1/2", "--train", "train.csv", "--json", "out.json"
    )
    assert (status, error) == (0, "")
    assert kept("constant", "max_cpc", "linear") == [
        (30.0, 2, 1, 30.0, 30.0, 0.5),
        (100.0, 2, 2, 40.0, 20.0, 0.5),
        (8, 1, 1, 10.0, 10.0, 0.25),
    ]
    whole = json.loads(Path("out.json").read_text())
    assert (whole["budget"], whole["auctions"]) == (50.0, 4)
    assert "4 auctions, budget 50" in out
    rows = [line.replace("│", " ").split() for line in out.splitlines()]
    assert ["max_cpc", "100", "2", "2", "40", "20", "50.00%"] in rows
    page = (Path(__file__).parents[2] / "docs" / "replay.md").read_text()
    for line in out.splitlines():  # the page shows this very table
        assert line.rstrip() in page


def test_fitted_on_the_training_log(command):
    """A click costs 30 there, so bids are 6, 3, 9, 6 and none wins."""
    flags = ["--bidder", "max_cpc", "--budget", "inf", "--json", "out.json"]
    assert command("test.csv", *flags, "--train", "train.csv")[0] == 0
    assert kept("max_cpc") == [(30.0, 0, 0, 0.0, None, 0.0)]
    assert json.loads(Path("out.json").read_text())["budget"] is None


def test_rlb_waits_for_the_better_impression(command):
    """Prices are 10 or 20 at even odds, so 10 left buys at 10 only.

    Before 3 more auctions they are worth .15 (1 - .5^3) = .131 clicks, more than the .1 offered:
    no bid. Before 2 more .15 * .75 = .1125, less than .2: it bids 10, wins the click and is done.
    """
    Path("late.csv").write_text("click,market_price,pctr\n0,10,0.1\n1,10,0.2\n0,10,0.3\n0,10,0.3\n")
    flags = ["--bidder", "rlb", "--budget", "10", "--train", "train.csv", "--json", "out.json"]
    assert command("late.csv", *flags)[0] == 0
    assert kept("rlb") == [(None, 1, 1, 10.0, 10.0, 0.25)]


def test_an_ipinyou_folder_has_its_training_file(command):
    """Feature 5 clicks. Both cost 10 a click, and 30 for one is more than both prices."""
    Path("c").mkdir()
    lines = [f"{int(f == 5)} 10 0:1 {f}:1\n" for f in (4, 5) * 30]
    Path("c/train.yzx.txt").write_text("".join(lines))
    Path("c/test.yzx.txt").write_text("0 12 0:1 4:1\n1 7 0:1 5:1\n")
    flags = ["--bidder", "linear", "--budget", "1/1", "--json", "out.json"]
    assert command("c", *flags, "--base-bids", "9", "30")[0] == 0
    # Mean pctr is .5 and those of the two features are about 0 and 1: a base bid of 9 bids up to
    # 18, which is enough for every click of the training log and for the second auction.
    assert kept("linear") == [(9.0, 1, 1, 7.0, 7.0, 0.5)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["no.csv", "--bidder", "rlb", "--train", "train.csv"], "no.csv is missing"),
        (["test.csv", "--bidder", "rlb", "--train", "no.csv"], "no.csv is missing"),
        (["test.csv", "--bidder", "magic"], "unknown bidder 'magic': choose from constant, "),
        (["test.csv", "--bidder", "linear"], "linear is fitted on a training log: give --train"),
        (["test.csv", "--bidder", "constant"], "constant needs --price"),
        (["test.csv", "--bidder", "constant", "--price", "-1"], "price must be finite"),
        (["dull.csv", "--bidder", "linear", "--train", "dull.csv"], "linear needs a click"),
        (["dull.csv", "--bidder", "max_cpc", "--train", "dull.csv"], "max_cpc needs a click"),
        (["bad.csv", "--bidder", "constant", "--price", "1"], "bad.csv: log lacks the column"),
        (["x.json", "--bidder", "constant", "--price", "1"], "must end in .log.txt, .yzx.txt,"),
        ([".", "--bidder", "rlb"], "holds neither train.log.txt nor train.yzx.txt"),
    ],
)
def test_mistakes_are_one_line(command, flags, message):
    Path("dull.csv").write_text("click,market_price,pctr\n0,10,0.2\n")
    Path("bad.csv").write_text("click,pctr\n0,0.2\n")
    Path("x.json").write_text("")
    status, out, error = command(*flags, "--budget", "5")
    assert (status, out) == (2, "")
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("-3", "--budget must be at least 0, got -3"),
        ("-1/8", "--budget must be at least 0, got -1/8"),
        ("nan", "--budget must be at least 0, got nan"),
        ("1/0", "must be an amount (1500) or a share (1/8), got '1/0'"),
        ("much", "must be an amount (1500) or a share (1/8), got 'much'"),
    ],
)
def test_bad_budgets_are_named(command, budget, message):
    flags = ["--bidder", "constant", "--price", "1"]
    status, _, error = command("test.csv", *flags, f"--budget={budget}")
    assert status == 2
    assert message in error
