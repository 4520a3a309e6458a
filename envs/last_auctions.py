"""What `render` shows of days: the last auction of every row.

Dims: B rows.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from envs.render import AuctionView, clock
from simulators.day.day import Served

_MOST_BATCHES = 4
"""Batches kept before those are dropped that are the last of no row."""


class LastAuctions:
    """The last auction of each of B rows, which need not be of the same batch."""

    def __init__(self, num_rows: int) -> None:
        self._batches: dict[int, Served] = {}
        self._batch = np.full(num_rows, -1)
        self._place = np.zeros(num_rows, dtype=np.int64)
        self._count = 0

    def add(self, index: NDArray[np.int64], served: Served) -> None:
        """Note the auctions of rows `index`."""
        self._batch[index], self._place[index] = self._count, np.arange(len(index))
        self._batches[self._count] = served
        self._count += 1
        if len(self._batches) > _MOST_BATCHES:
            needed = set(self._batch.tolist())
            self._batches = {key: one for key, one in self._batches.items() if key in needed}

    def forget(self, rows: NDArray[np.bool_]) -> None:
        """Forget the auctions of `rows`."""
        self._batch[rows] = -1

    def view(self, row: int, summary: str) -> AuctionView:
        """Return the last auction of a row, above a line of text."""
        if self._batch[row] < 0:
            return AuctionView("no auction yet", None, summary)
        served, place = self._batches[int(self._batch[row])], int(self._place[row])
        moment = served.moment
        title = (
            f"request {int(moment.number[place])} of user {int(moment.user[place])}, "
            f"{clock(int(moment.time[place]))}"
        )
        return AuctionView(title, _candidates(served, place), summary)


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
