"""The auction of a request as a table of text: `render_mode="ansi"`.

Dims: B rows.
"""

import io
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from simulators.day.day import Served
from simulators.world.tables import BID_TYPES

WIDTH = 100


def auction_text(title: str, candidates: pd.DataFrame | None, summary: str) -> str:
    """Return one request's auction as a table without colours.

    `candidates` has ad_id, pctr, pcvr, bid_type (0..2), bid, ecpm, slot (-1: not shown), price (per
    paid event) and note, the policy's own ad first. None: there was no auction.
    """
    if candidates is None:
        return _plain([title, summary])
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("ad", "pCTR", "pCVR", "bid", "", "eCPM", "slot", "price", ""):
        table.add_column(name, justify="left" if name == "" else "right")
    for row in candidates.itertuples():
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
    return _plain([table, summary])


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


class LastAuctions:
    """The last auction of each of B rows, which need not be of the same batch."""

    def __init__(self, num_rows: int) -> None:
        self._served = np.full(num_rows, None, dtype=np.object_)  # rows of a batch share it
        self._place = np.zeros(num_rows, dtype=np.int64)

    def add(self, index: NDArray[np.int64], served: Served) -> None:
        """Note the auctions of rows `index`."""
        self._served[index], self._place[index] = served, np.arange(len(index))

    def forget(self, rows: NDArray[np.bool_]) -> None:
        """Forget the auctions of `rows`."""
        self._served[rows] = None

    def view(self, row: int, summary: str) -> str:
        """Return the last auction of a row, above a line of text."""
        served, place = self._served[row], int(self._place[row])
        if served is None:
            return auction_text("no auction yet", None, summary)
        moment = served.moment
        title = (
            f"request {int(moment.number[place])} of user {int(moment.user[place])}, "
            f"{clock(int(moment.time[place]))}"
        )
        return auction_text(title, _candidates(served, place), summary)


def _candidates(served: Served, row: int) -> pd.DataFrame:
    """Return one row of an auction, a line each candidate; the policy's own first."""
    outcome = served.outcome[row]
    frame = pd.DataFrame(
        {
            name: getattr(outcome, name).numpy()
            for name in ("ad_id", "pctr", "pcvr", "bid", "bid_type", "ecpm")
        }
    )
    frame["slot"], frame["price"], frame["note"] = -1, 0.0, ""
    frame.loc[0, "note"] = "chosen"
    for slot, winner in enumerate(served.auction.slot_candidate[row].tolist()):
        if winner >= 0:
            frame.loc[winner, "slot"] = slot
            frame.loc[winner, "price"] = served.auction.price[row, slot].item()
            if served.clicked[row, slot]:
                frame.loc[winner, "note"] += " clicked"
    return frame.drop_duplicates("ad_id")
