"""Event tables as sorted streams, so that "everything before t" is one range per user.

Dims: B moments (a user and a time each), S rows per moment.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gpr_rl.schema import Action

IntArray = NDArray[np.int64]
_TIME_SPAN = 1 << 40
_SORTED_FROM = 64


def ragged(start: IntArray, stop: IntArray) -> tuple[IntArray, IntArray]:
    """Return (row, index) of all integers in the B ranges [start, stop), flattened."""
    size = np.maximum(stop - start, 0)
    row = np.repeat(np.arange(len(size)), size)
    return row, np.arange(len(row)) + np.repeat(start - (np.cumsum(size) - size), size)


def search(key: IntArray, query: IntArray) -> IntArray:
    """Return `key.searchsorted(query)`, sooner: queries in order share what the cache holds."""
    if query.size < _SORTED_FROM:
        return key.searchsorted(query)
    flat = query.ravel()
    order = flat.argsort()
    place = np.empty_like(order)
    place[order] = key.searchsorted(flat[order])
    return place.reshape(query.shape)


@dataclass(frozen=True)
class Today:
    """What B users did since a log was cut, [B, W] each, oldest first, aligned to the right."""

    since: IntArray  # [B], the log counts until then, seconds
    item: IntArray  # ads, then organic items
    action: IntArray
    time: IntArray
    context: IntArray  # [B, W, C]; 0 for organic views
    kept: NDArray[np.bool_]  # part of the token stream
    known: NDArray[np.bool_]  # else padding

    @property
    def taken(self) -> NDArray[np.bool_]:
        """[B, W], views, clicks and conversions."""
        return self.known & (self.action != Action.IMPRESSION)


@dataclass(frozen=True)
class Stream:
    """Events of one sort, sorted by (user, time); columns are aligned arrays."""

    key: IntArray  # user_id * 2^40 + timestamp
    start: IntArray  # first row of each user, [U + 1]
    columns: dict[str, IntArray]

    @classmethod
    def build(cls, events: pd.DataFrame, names: tuple[str, ...], num_users: int) -> "Stream":
        """Sort events; of equal (user, time) the order of the table stays."""
        user = events["user_id"].to_numpy()
        key = user * _TIME_SPAN + events["timestamp"].to_numpy()
        order = np.argsort(key, kind="stable")
        columns = {name: events[name].to_numpy()[order] for name in names}
        start = np.searchsorted(user[order], np.arange(num_users + 1))
        return cls(key[order], start, columns)

    @property
    def user(self) -> IntArray:
        """The user of each event, [n]."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))

    def before(self, user_id: IntArray, timestamp: IntArray) -> tuple[IntArray, IntArray]:
        """Return the row ranges [start, stop) of each user's events strictly before a time."""
        stop = search(self.key, user_id * _TIME_SPAN + timestamp)
        return self.start[user_id], stop

    def last(self, user_id: IntArray, timestamp: IntArray, size: int) -> tuple[IntArray, NDArray]:
        """Return rows [B, size] of the last events before each moment, oldest first, 0: missing.

        With a bool mask [B, size] of those that exist, aligned to the right.
        """
        start, stop = self.before(user_id, timestamp)
        rows = stop[:, None] - size + np.arange(size)
        known = rows >= start[:, None]
        return np.where(known, rows, 0), known

    def take(self, name: str, rows: IntArray) -> IntArray:
        """Return a column at rows that `last` gave; 0 in a stream without events."""
        column = self.columns[name]
        return column[rows] if len(column) else np.zeros_like(rows)
