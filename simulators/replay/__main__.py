"""Replay bidders on a log of auctions: `python -m simulators.replay LOG --bidder linear`.

A bidder wins where its bid is at least the market price and the rest of its budget is too, and
pays the market price. What is fitted is fitted on a training log.
"""

import json
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import tyro
from rich.console import Console
from rich.table import Table

from gpr_rl.files import write_text
from simulators.replay.ipinyou import load_ipinyou
from simulators.replay.replay import (
    AnyBidder,
    ConstantBidder,
    MaxCPCBidder,
    check_log,
    run,
    tune_linear,
)
from simulators.replay.rlb import RLBBidder

BIDDERS = {"constant": "price", "max_cpc": "max_cpc", "linear": "base_bid", "rlb": None}
"""Name -> its number that is given or fitted."""
_IPINYOU = (".log.txt", ".yzx.txt")
_SHOWN = {
    "fitted": ",.6g",
    "impressions": ",",
    "clicks": ",",
    "spend": ",.10g",
    "cost_per_click": ",.6g",
    "win_rate": ".2%",
}


@dataclass(frozen=True, kw_only=True)
class ReplayArgs:
    """Replay bidders on a log of second-price auctions and print what they win."""

    log: Annotated[Path, tyro.conf.Positional]
    """The auctions: an iPinYou file (*.log.txt, *.yzx.txt), a folder with such a test file, or a
    table (.parquet, .csv) with the columns click, market_price and pctr."""
    bidder: tuple[str, ...]
    """One or more of constant, max_cpc, linear and rlb."""
    budget: str
    """In the unit of market_price (1500, or inf for no limit), or as a share of what all auctions
    of the log cost together, written as a fraction (1/8)."""
    train: Path | None = None
    """The log that bidders are fitted on, in any of the forms of LOG; for a folder, the training
    file in it by default."""
    price: float | None = None
    """Bid of the constant bidder, in the unit of market_price."""
    max_cpc: float | None = None
    """Most that a click may cost, in the unit of market_price; by default what one costs who wins
    every auction of the training log."""
    base_bids: tuple[float, ...] = tuple(float(bid) for bid in range(2, 301, 2))
    """Base bids that the linear bidder is tuned over, in the unit of market_price."""
    json: Path | None = None
    """File to keep the figures in."""


Row = dict[str, Any]
"""What one bidder won: bidder, fitted (the bid, the most per click or the base bid; None for rlb),
impressions, clicks, spend, cost_per_click (None without a click) and win_rate (impressions over
auctions; None for an empty log). Money is in the unit of market_price."""


def replay(args: ReplayArgs) -> tuple[float, int, list[Row]]:
    """Return the budget, the number of auctions and a row per bidder.

    Raises:
        ValueError: A user's mistake, or a log that can't be replayed.
        OSError: A file that can't be read.
    """
    if not args.bidder:
        raise ValueError(f"--bidder needs at least one of {', '.join(BIDDERS)}")
    for name in args.bidder:
        if name not in BIDDERS:
            raise ValueError(f"unknown bidder {name!r}: choose from {', '.join(BIDDERS)}")
    amount, is_share = parse_budget(args.budget)
    if "constant" in args.bidder and args.price is None:
        raise ValueError("--bidder constant needs --price")
    train_path = args.train or (_in_folder(args.log, "train") if args.log.is_dir() else None)
    given = {"constant"} | ({"max_cpc"} if args.max_cpc is not None else set())
    fitted = [name for name in args.bidder if name not in given]
    if fitted and train_path is None:
        raise ValueError(f"--bidder {fitted[0]} is fitted on a training log: give --train")
    log = read_log(args.log, "test")
    train = read_log(train_path, "train") if fitted and train_path else None
    budget = amount * float(log["market_price"].sum()) if is_share else amount
    rows = []
    for name in args.bidder:
        bidder, number = _bidder(name, args, train, budget, len(log)), BIDDERS[name]
        result = run(log, bidder, budget)
        rows.append(
            {
                "bidder": name,
                "fitted": getattr(bidder, number) if number else None,
                "impressions": result.impressions,
                "clicks": result.clicks,
                "spend": result.cost,
                "cost_per_click": result.cost / result.clicks if result.clicks else None,
                "win_rate": result.impressions / len(log) if len(log) else None,
            }
        )
    return budget, len(log), rows


def parse_budget(text: str) -> tuple[float, bool]:
    """Return an amount and False, or a share of the log's cost and True for a fraction (1/8)."""
    is_share = "/" in text
    try:
        amount = float(Fraction(text)) if is_share else float(text)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"--budget must be an amount (1500) or a share (1/8), got {text!r}"
        ) from error
    if not amount >= 0.0:
        raise ValueError(f"--budget must be at least 0, got {text}")
    return amount, is_share


def read_log(path: Path, part: str) -> pd.DataFrame:
    """Return the checked log of a file, or of the `test` or `train` file of an iPinYou folder."""
    path = _in_folder(path, part) if path.is_dir() else path
    if not path.exists():
        raise ValueError(f"{path} is missing")
    if path.name.endswith(_IPINYOU):
        log = load_ipinyou(path)
    elif path.suffix == ".parquet":
        log = pd.read_parquet(path)
    elif path.suffix == ".csv":
        log = pd.read_csv(path)
    else:
        raise ValueError(f"{path}: the name must end in {', '.join(_IPINYOU)}, .parquet or .csv")
    try:
        check_log(log)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return log


def _in_folder(folder: Path, part: str) -> Path:
    for ending in _IPINYOU:
        if (path := folder / f"{part}{ending}").exists():
            return path
    raise ValueError(f"{folder} holds neither {part}{_IPINYOU[0]} nor {part}{_IPINYOU[1]}")


def _bidder(
    name: str, args: ReplayArgs, train: pd.DataFrame | None, budget: float, num_auctions: int
) -> AnyBidder:
    """Return a bidder as given, or fitted on the training log."""
    if name == "constant" and args.price is not None:
        return ConstantBidder(args.price)
    if name == "max_cpc" and args.max_cpc is not None:
        return MaxCPCBidder(args.max_cpc)
    assert train is not None  # `replay` has read it
    if name == "rlb":
        return RLBBidder.fit(train)
    if not train["click"].any():
        raise ValueError(f"--bidder {name} needs a click in the training log, and it has none")
    if name == "max_cpc":
        return MaxCPCBidder.fit(train)
    if not args.base_bids:
        raise ValueError("--base-bids needs at least one bid to try")
    scaled = budget * len(train) / num_auctions if num_auctions else budget
    return tune_linear(train, scaled, args.base_bids)


def _print(rows: list[Row], budget: float, num_auctions: int) -> None:
    table = Table(title=f"{num_auctions:,} auctions, budget {budget:,.10g}")
    table.add_column("bidder")
    for name in _SHOWN:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        cells = ("-" if row[name] is None else format(row[name], of) for name, of in _SHOWN.items())
        table.add_row(row["bidder"], *cells)
    Console(width=100).print(table)


def main() -> int:
    """Run the command line; 2 on a user's mistake."""
    args = tyro.cli(ReplayArgs, description=__doc__, prog="python -m simulators.replay")
    try:
        budget, num_auctions, rows = replay(args)
        if args.json is not None:
            kept = {
                "log": str(args.log),
                "train": None if args.train is None else str(args.train),
                "budget": budget if budget < float("inf") else None,
                "auctions": num_auctions,
                "bidders": rows,
            }
            write_text(args.json, json.dumps(kept, indent=2, allow_nan=False) + "\n")
    except (ValueError, OSError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    _print(rows, budget, num_auctions)
    return 0


if __name__ == "__main__":
    sys.exit(main())
