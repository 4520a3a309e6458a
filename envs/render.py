"""The auction of a request as a table of text: `render_mode="ansi"`."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from simulators.world.tables import BID_TYPES

WIDTH = 100


@dataclass(frozen=True)
class AuctionView:
    """What there is to see of one request's auction."""

    title: str
    candidates: pd.DataFrame | None
    """ad_id, pctr, pcvr, bid_type (0..2), bid, ecpm, slot (-1: not shown), price (per paid event),
    note; the policy's own ad first. None: there was no auction."""
    summary: str = ""


def auction_text(view: AuctionView) -> str:
    """Return the table, without colours."""
    table = Table(title=view.title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("ad", "pCTR", "pCVR", "bid", "", "eCPM", "slot", "price", ""):
        table.add_column(name, justify="left" if name == "" else "right")
    if view.candidates is None:
        return _plain([view.title, view.summary])
    for row in view.candidates.itertuples():
        won = row.slot >= 0
        table.add_row(
            str(row.ad_id),
            f"{row.pctr:.4f}",
            f"{row.pcvr:.4f}",
            f"{row.bid:.3f}",
            BID_TYPES[row.bid_type],
            f"{row.ecpm:.2f}",
            str(row.slot) if won else "",
            f"{row.price:.3f}" if won else "",
            str(row.note),
        )
    return _plain([table, view.summary])


def _plain(parts: Sequence[Table | str]) -> str:
    out = io.StringIO()
    console = Console(file=out, width=WIDTH, force_terminal=False, color_system=None)
    for part in filter(None, parts):
        console.print(part, markup=False, highlight=False)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def clock(timestamp: int) -> str:
    """Return `day 12, 18:03:20` for seconds since day 0."""
    day, second = divmod(timestamp, 86_400)
    return f"day {day}, {second // 3600:02}:{second % 3600 // 60:02}:{second % 60:02}"
