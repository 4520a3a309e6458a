"""A public log read piece by piece into a few compact columns.

Ids and labels become numbers as they come, so memory holds the rows of the users that are kept, 34
bytes each, and not the log.

Dims: n rows, U users.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from gpr_rl.random import Purpose, uniform
from gpr_rl.schema import Action
from simulators.imported.config import ImportConfig
from simulators.imported.events import in_order
from simulators.imported.readers.checks import CheckCounts, RowChecker
from simulators.imported.readers.log import ACTIONS, LogSource
from simulators.world.history import DAY_S

UNKNOWN = -1
"""The scene or place of a row that has none."""
_ACTION = np.array([Action[name.upper()] for name in ACTIONS], dtype=np.int8)
_COMPACT_FROM = 1 << 20


@dataclass(frozen=True)
class Log:
    """The good rows of the users that are kept."""

    rows: pd.DataFrame
    """user_id (0..U-1), item (row of the item table), timestamp (seconds since the midnight before
    the first row of the log, UTC), action (`schema.Action`), value, price, bid (NaN: not known),
    scene, place (numbers of labels, `UNKNOWN`); in order of time, user, item and action."""
    source_user: pd.Index
    """The log's own id of each user, rising, [U]."""
    scenes: pd.Index
    """The label of each scene."""
    places: pd.Index
    """The label of each place."""
    first_day: int
    """Days from 1970 to day 0."""
    num_days: int
    counts: CheckCounts
    num_users: int
    """Users in the log, before the sample."""

    @cached_property
    def day(self) -> NDArray[np.int32]:
        """The day of each row, [n]."""
        return (self.rows["timestamp"].to_numpy() // DAY_S).astype(np.int32)

    @cached_property
    def actions(self) -> frozenset[Action]:
        """What occurs in it."""
        return frozenset(Action(action) for action in self.rows["action"].unique())


class Numbers:
    """Numbers 0, 1, 2 ... for labels, in the order in which they are met."""

    def __init__(self) -> None:
        self._number: dict = {}

    def of(self, labels: pd.Series) -> NDArray[np.int32]:
        """Return the number of each label, `UNKNOWN` of null."""
        code, distinct = pd.factorize(labels)
        known = self._number
        number = [known.setdefault(label, len(known)) for label in distinct.tolist()]
        return np.array([*number, UNKNOWN], dtype=np.int32)[code]  # null has code -1

    def labels(self, start: int = 0) -> pd.Index:
        """Return the labels from number `start` on, in the order of their numbers."""
        return pd.Index(list(islice(self._number, start, None)))

    def __len__(self) -> int:
        return len(self._number)


def keyed_draw(ids: pd.Index, seed: int, purpose: Purpose) -> NDArray[np.float64]:
    """Return a draw from (0, 1) for each id, which depends on nothing but seed and purpose."""
    text = np.array([str(label) for label in ids], dtype=object)
    key = pd.util.hash_array(text, categorize=False).view(np.int64)
    return uniform(seed, purpose, torch.from_numpy(key.copy())).numpy()


class _Sample:
    """Which users are kept: those with the smallest draws, as far as they are known by now."""

    def __init__(self, size: int | None, seed: int) -> None:
        self._size, self._seed = size, seed
        self.draw: NDArray[np.float64] = np.zeros(0)
        self.limit = np.inf

    def meet(self, users: pd.Index) -> None:
        """Take new users into account; who is out once stays out."""
        new = keyed_draw(users, self._seed, Purpose.IMPORTED_USER)
        self.draw = np.concatenate([self.draw, new])
        if self._size is not None and len(self.draw) > self._size:
            self.limit = float(np.partition(self.draw, self._size - 1)[self._size - 1])

    def keeps(self, user: NDArray[np.int32]) -> NDArray[np.bool_]:
        return self.draw[user] <= self.limit


def read_log(
    source: LogSource,
    items: pd.Index,
    rejected: Path,
    config: ImportConfig,
    *,
    seed: int,
    progress: Callable[[str], None],
) -> Log:
    """Read, check and number all rows of a log; rejected ones are listed in a file.

    The sample of users is uniform and knows nothing but their ids.

    Raises:
        LogFormatError: Too many bad rows.
    """
    checker = RowChecker(items, rejected, max_bad_share=config.max_bad)
    users, scenes, places = Numbers(), Numbers(), Numbers()
    sample = _Sample(config.max_users, seed)
    parts: list[pd.DataFrame] = []
    first, last, read, told, compact_at = np.inf, -np.inf, 0, 0, _COMPACT_FROM
    for piece in source.rows():
        frame = checker.check(piece)
        read += len(piece.frame)
        if read - told >= 1_000_000:
            told = read
            progress(f"{read:,} rows read")
        if frame.empty:
            continue
        time = frame["timestamp"].to_numpy()
        first, last = min(first, time.min()), max(last, time.max())
        user = users.of(frame["user_id"])
        if len(users) > len(sample.draw):
            sample.meet(users.labels(len(sample.draw)))
        columns = {
            "user_id": user,
            "item": items.get_indexer(frame["item_id"]).astype(np.int32),
            "timestamp": time,
            "action": _ACTION[frame["action"].to_numpy()],
            **{name: frame[name].to_numpy() for name in ("value", "price", "bid")},
            "scene": scenes.of(frame["scene"]).astype(np.int16),
            "place": places.of(frame["place"]),
        }
        parts.append(pd.DataFrame(columns).loc[sample.keeps(user)])
        if sum(map(len, parts)) > compact_at:  # users that were kept at first may be out by now
            parts = [_kept(parts, sample)]
            compact_at = 2 * len(parts[0]) + _COMPACT_FROM
    counts = checker.finish()
    midnight = int(first) // DAY_S * DAY_S
    rows = _kept(parts, sample)
    parts.clear()
    rows["timestamp"] -= midnight
    total = (int(last) - midnight) // DAY_S + 1
    if config.num_days is not None and config.num_days < total:
        total = config.num_days
        rows = rows[rows["timestamp"] < total * DAY_S]
    rows, source_user = _sorted(rows, users)
    return Log(
        rows=rows,
        source_user=source_user,
        scenes=scenes.labels(),
        places=places.labels(),
        first_day=midnight // DAY_S,
        num_days=total,
        counts=counts,
        num_users=len(users),
    )


def _kept(parts: list[pd.DataFrame], sample: _Sample) -> pd.DataFrame:
    rows = pd.concat(parts, ignore_index=True)
    keeps = sample.keeps(rows["user_id"].to_numpy())
    return rows if keeps.all() else rows[keeps].reset_index(drop=True)


def _sorted(rows: pd.DataFrame, users: Numbers) -> tuple[pd.DataFrame, pd.Index]:
    """Return rows in order of time, with users numbered by their rising ids, and these ids."""
    found = np.unique(rows["user_id"])
    labels = users.labels()[found]
    order = labels.argsort()
    number = np.full(len(users), UNKNOWN, dtype=np.int32)
    number[found[order]] = np.arange(len(found), dtype=np.int32)
    rows["user_id"] = number[rows["user_id"].to_numpy()]
    rows = rows.iloc[in_order(rows, "timestamp", "user_id", "item", "action")]
    return rows.reset_index(drop=True), labels[order]
