"""Small logs for tests of the import."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulators.import_log import import_log
from simulators.imported.config import ImportConfig
from simulators.imported.readers.log import ItemTable, Rows
from simulators.world import World

DAY_S = 86_400
START = 1_700_000_000 // DAY_S * DAY_S  # Tuesday 14 November 2023, 00:00 UTC
SMALL = ImportConfig(num_codes=4, num_levels=2, num_ranker_rows=2_000, behavior_dim=4)


@dataclass
class MemoryLog:
    """A `LogSource` of data frames."""

    frame: pd.DataFrame
    item_frame: pd.DataFrame
    embedding: np.ndarray | None = None
    text: pd.Series | None = None
    user_frame: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"user_id": []}))
    offer_frames: tuple[pd.DataFrame, ...] = ()
    piece_rows: int = 700
    title: str = "a log in memory"
    notes: tuple[str, ...] = ("A note of the reader.",)
    simulated: tuple[str, ...] = ()
    one_row_per_exposure: bool = False

    def rows(self) -> Iterator[Rows]:
        for start in range(0, len(self.frame), self.piece_rows):
            part = self.frame.iloc[start : start + self.piece_rows].reset_index(drop=True)
            yield Rows(part, Path("memory.csv"), np.arange(start, start + len(part)) + 2)

    def items(self) -> ItemTable:
        return ItemTable(frame=self.item_frame, embedding=self.embedding, text=self.text)

    def users(self) -> pd.DataFrame:
        return self.user_frame

    def offers(self) -> Iterator[pd.DataFrame]:
        yield from self.offer_frames


def rows(*cells: tuple[Any, Any, int, str]) -> pd.DataFrame:
    """Return user, item, seconds since the first day, action as a log's frame."""
    frame = pd.DataFrame(cells, columns=["user_id", "item_id", "timestamp", "action"])
    return frame.assign(timestamp=frame["timestamp"] + START)


def random_log(
    *, shown: bool, clicks: bool = True, conversions: bool = True, num_rows: int = 2_500
) -> MemoryLog:
    """Return a log of 30 users, 24 items and 12 days; user u likes items with i % 6 == u % 6."""
    rng = np.random.default_rng(7)
    user, item = rng.integers(0, 30, num_rows), rng.integers(0, 24, num_rows)
    time = np.sort(rng.integers(0, 12 * DAY_S, num_rows))
    likes = rng.random(num_rows) < np.where(item % 6 == user % 6, 0.7, 0.1)
    base = pd.DataFrame({"user_id": user, "item_id": item, "timestamp": START + time})
    parts = [base.assign(action="impression")] if shown else []
    if clicks:
        later = rng.integers(0, 3_000, num_rows)
        clicked = base.assign(timestamp=base["timestamp"] + later, action="click")
        parts.append(clicked[likes])
    if conversions:
        bought = base.assign(timestamp=base["timestamp"] + 3_600, action="conversion")
        parts.append(bought[likes & (rng.random(num_rows) < (0.4 if clicks else 1.0))])
    viewed = base.assign(timestamp=base["timestamp"] + 7, action="view")
    parts.append(viewed[rng.random(num_rows) < 0.2])
    frame = pd.concat(parts).sort_values("timestamp", kind="stable", ignore_index=True)
    frame = frame[frame["timestamp"] < START + 12 * DAY_S].reset_index(drop=True)
    embedding = rng.normal(size=(24, 5)).astype(np.float32)
    items = pd.DataFrame({"item_id": np.arange(24), "category": np.arange(24) % 6})
    return MemoryLog(frame, items, embedding)


def make(log: MemoryLog, directory: Path, config: ImportConfig = SMALL, seed: int = 0) -> World:
    """Return the log as a world."""
    return import_log(log, config, directory, lambda line: None, seed=seed)  # type: ignore[arg-type]
