"""What every reader of a public log gives: interactions, items, users and what could be shown.

A reader only renames columns and converts units. Rows are checked by `readers.checks`, and a
world is made of them by `simulators.import_log`, the same for every format.

Dims: n rows, d embedding width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulators.imported.readers.errors import LogFormatError

ACTIONS = ("view", "impression", "click", "conversion")
"""An organic interaction; an ad that was shown, clicked, or led to a conversion."""
COLUMNS = ("user_id", "item_id", "timestamp", "action")
"""Every log has them: two ids (integers or text), seconds since 1970 (UTC; by the local clock where
the reader's notes say so, so that the hour of day is right), one of `ACTIONS`."""
OPTIONAL_COLUMNS = ("value", "price", "bid", "scene", "place")
"""What a conversion was worth, the item's price and the ad's bid at that time (currency), where on
the site it happened (any label), and the row of `offers` that says what could be shown."""

BID_TYPES = ("CPM", "CPC", "OCPA")


@dataclass(frozen=True)
class Rows:
    """A piece of the interactions, as read and not yet checked."""

    frame: pd.DataFrame
    """`COLUMNS` and any of `OPTIONAL_COLUMNS`, n rows. A value that can't be read is kept as text
    or null, so that the check can name it."""
    file: Path
    line: NDArray[np.int64]
    """[n], where each row is: line of a text file, row of a table, both counted from 1."""
    unreadable: tuple[tuple[int, str], ...] = ()
    """Lines between them that are no rows at all (line, reason), e.g. with a cell too many."""

    def check_readable(self) -> None:
        """Raise LogFormatError, naming file and line, if a line is no row."""
        for line, reason in self.unreadable:
            raise LogFormatError(f"{self.file}:{line}: {reason}")


@dataclass(frozen=True, kw_only=True)
class ItemTable:
    """Items: what they are, as an embedding or as text, and what is known of them."""

    frame: pd.DataFrame
    """`item_id`, unique, and any of: `is_ad` (bool), `vertical`, `category`, `advertiser` (labels),
    `price`, `bid`, `budget` (per day), `bid_type` (CPM, CPC or OCPA), `name`. Null: unknown."""
    embedding: NDArray[np.float32] | None = None
    """[n, d], a row per item."""
    text: pd.Series | None = None
    """Words of each item, for TF-IDF; exactly one of the two is given."""

    def __post_init__(self) -> None:
        frame, embedding = self.frame, self.embedding
        item_id = frame["item_id"]
        for row in np.flatnonzero(item_id.isna()):
            raise LogFormatError(f"items: item_id of row {row + 1} is missing")
        for twice in item_id[item_id.duplicated()]:
            raise LogFormatError(f"items: item_id must be unique, {twice!r} occurs twice")
        if (embedding is None) == (self.text is None):
            raise LogFormatError("items: exactly one of an embedding and text is needed")
        if embedding is not None and (embedding.ndim != 2 or len(embedding) != len(frame)):
            raise LogFormatError(
                f"items: the embedding must have a row for each of {len(frame)} items, "
                f"got shape {embedding.shape}"
            )
        for row in () if embedding is None else np.flatnonzero(~np.isfinite(embedding).all(1)):
            raise LogFormatError(f"items: the embedding of row {row + 1} is not finite")
        for name in {"price", "bid", "budget"} & set(frame):
            for amount in frame.loc[(frame[name] < 0) | np.isinf(frame[name]), name]:
                raise LogFormatError(f"items: {name} must be at least 0 and finite, got {amount}")
        if "bid_type" in frame:
            for word in set(frame["bid_type"].dropna()) - set(BID_TYPES):
                raise LogFormatError(f"items: bid_type must be one of {BID_TYPES}, got {word!r}")


@runtime_checkable
class LogSource(Protocol):
    """One data set of a user, opened and with its columns checked; a base of readers."""

    title: str
    """For reports, e.g. `MovieLens-1M`."""
    notes: tuple[str, ...] = ()
    """What a reader of results must know, in sentences."""
    simulated: tuple[str, ...] = ()
    """What the reader itself made up for lack of data."""
    one_row_per_exposure: bool = False
    """Whether an outcome stands in the row of its impression, as in logs of served ads; else rows
    are events, and outcomes are attributed to earlier impressions."""

    def rows(self) -> Iterator[Rows]:
        """Yield the interactions in pieces of bounded size, in the order of the files."""

    def items(self) -> ItemTable:
        """Return the items."""

    def users(self) -> pd.DataFrame:
        """Return what is known of users; by default an empty table.

        `user_id`, unique, and any of `age` (years), `gender`, `region`, `device` and further
        attributes, each a label or null. Users without a row know nothing of themselves.
        """
        return pd.DataFrame({"user_id": []})

    def offers(self) -> Iterator[pd.DataFrame]:
        """Yield `place` and `item_id`: which ads could be shown where. Nothing: not known."""
        return iter(())


Opener = Callable[[Path], LogSource]
_FORMATS: dict[str, Opener] = {}


def register_format(name: str) -> Callable[[Opener], Opener]:
    """Make a reader known as `--format NAME`.

    Raises:
        ValueError: The name is taken.
    """

    def add(opener: Opener) -> Opener:
        if name in _FORMATS:
            raise ValueError(f"format {name!r} is registered already")
        _FORMATS[name] = opener
        return opener

    return add


def open_log(source: str | Path, name: str) -> LogSource:
    """Open a data set; its files and columns are checked, its rows are not read yet.

    Args:
        source: Folder (or file) of the data set.
        name: Its format.

    Raises:
        LogFormatError: Unknown format, a missing file or column, or a wrong type; the message says
            which file and column and what was expected.
    """
    if name not in _FORMATS:
        raise LogFormatError(
            f"unknown format {name!r}: choose one of {', '.join(sorted(_FORMATS))}"
        )
    return _FORMATS[name](Path(source))
