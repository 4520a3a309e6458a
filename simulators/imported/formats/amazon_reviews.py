"""Amazon Reviews 2023: a review is a conversion.

A folder with `NAME.jsonl` and `meta_NAME.jsonl` (each may end in `.gz`) of one category or several.
Items are parent products (`parent_asin`); one that is in two categories is taken from the first.
Files are streamed a line at a time.
"""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from simulators.imported.readers.columns import no_users, seconds
from simulators.imported.readers.log import ItemTable, LogFormatError, Rows, register_format

_PIECE_LINES = 1 << 15
_REVIEW = ("user_id", "parent_asin", "timestamp")
_META = ("parent_asin", "title", "categories", "store", "main_category", "price")
_AMOUNT = re.compile(r"\d+(?:\.\d+)?")


@register_format("amazon_reviews")
class AmazonReviews:
    """A folder with reviews and meta data; see the module."""

    notes: tuple[str, ...] = (
        "A review stands for a purchase; there are no ads, impressions or clicks.",
        "A price is the one listed when the data was gathered.",
    )
    simulated: tuple[str, ...] = ()
    one_row_per_exposure = False

    def __init__(self, source: Path) -> None:
        metas = sorted([*source.glob("meta_*.jsonl"), *source.glob("meta_*.jsonl.gz")])
        if not metas:
            raise LogFormatError(f"{source}: meta_*.jsonl or meta_*.jsonl.gz is missing")
        self._metas, self._reviews = metas, [_reviews_of(meta) for meta in metas]
        for paths, names in ((self._reviews, _REVIEW), (self._metas, _META)):
            for path in paths:
                _check_first_line(path, names)
        categories = [path.name.partition(".")[0] for path in self._reviews]
        self.title = f"Amazon Reviews 2023 ({', '.join(categories)})"

    def rows(self) -> Iterator[Rows]:
        """Yield the reviews; see `LogSource`."""
        for path in self._reviews:
            for cells, line, unreadable in _records(path, _REVIEW):
                frame = pd.DataFrame(
                    {
                        "user_id": _texts(cells["user_id"]),
                        "item_id": _texts(cells["parent_asin"]),
                        "timestamp": seconds(pd.Series(cells["timestamp"])),
                        "action": "conversion",
                    }
                )
                yield Rows(frame, path, np.array(line, dtype=np.int64), tuple(unreadable))

    def items(self) -> ItemTable:
        """Return the products: title, categories and store; see `LogSource`."""
        columns: dict[str, list] = {name: [] for name in (*_META, "text")}
        for path in self._metas:
            for cells, _, unreadable in _records(path, _META):
                for number, reason in unreadable:
                    raise LogFormatError(f"{path}:{number}: {reason}")
                cells["price"] = [_price(price) for price in cells["price"]]
                cells["text"] = [
                    " ".join(str(word) for word in (title, *(categories or []), store) if word)
                    for title, categories, store in zip(
                        cells["title"], cells["categories"], cells["store"], strict=True
                    )
                ]
                cells["categories"] = [row[-1] if row else None for row in cells["categories"]]
                for name, column in columns.items():
                    column += cells[name]
        found = pd.DataFrame(columns).drop_duplicates("parent_asin", ignore_index=True)
        frame = pd.DataFrame(
            {
                "item_id": found["parent_asin"].astype("str"),
                "vertical": found["main_category"].astype("str"),
                "category": found["categories"].astype("str"),
                "advertiser": found["store"].astype("str"),
                "price": found["price"].astype(float),
                "name": found["title"].astype("str"),
            }
        )
        return ItemTable(frame=frame, text=found["text"].astype("str"))

    def users(self) -> pd.DataFrame:
        """Return an empty table: nothing is known of users."""
        return no_users()

    def offers(self) -> Iterator[pd.DataFrame]:
        """Yield nothing: what could be shown is not known."""
        return iter(())


def _reviews_of(meta: Path) -> Path:
    stem = meta.name.removeprefix("meta_").partition(".jsonl")[0]
    for ending in (".jsonl", ".jsonl.gz"):
        if (path := meta.with_name(stem + ending)).exists():
            return path
    raise LogFormatError(f"{meta.parent}: {stem}.jsonl or {stem}.jsonl.gz is missing")


def _check_first_line(path: Path, names: tuple[str, ...]) -> None:
    for _, _, unreadable in _records(path, names, 1):
        for number, reason in unreadable:
            raise LogFormatError(f"{path}:{number}: {reason}")
        return
    raise LogFormatError(f"{path} has no rows")


_Records = tuple[dict[str, list], list[int], list[tuple[int, str]]]


def _records(path: Path, names: tuple[str, ...], size: int = _PIECE_LINES) -> Iterator[_Records]:
    """Yield columns of a JSON lines file, their line numbers, and the lines that are no rows."""
    cells: dict[str, list] = {name: [] for name in names}
    lines: list[int] = []
    unreadable: list[tuple[int, str]] = []
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    record = json.loads(line)
                    row = [record[name] for name in names]
                except (ValueError, TypeError):
                    unreadable.append((number, f"no JSON object: {line[:40]!r}"))
                except KeyError as error:
                    unreadable.append((number, f"field {error} is missing"))
                else:
                    lines.append(number)
                    for name, cell in zip(names, row, strict=True):
                        cells[name].append(cell)
                if len(lines) + len(unreadable) == size:
                    yield cells, lines, unreadable
                    cells, lines, unreadable = {name: [] for name in names}, [], []
    except (OSError, EOFError) as error:
        raise LogFormatError(f"{path} can't be read: {error}") from error
    if lines or unreadable:
        yield cells, lines, unreadable


def _texts(cells: list) -> pd.Series:
    """Return ids as text; anything else counts as missing."""
    return pd.Series([cell if isinstance(cell, str) else None for cell in cells], dtype="str")


def _price(price: object) -> float:
    """Return the first number of e.g. `$1,299.00` or `from 9.99`; NaN if there is none."""
    found = _AMOUNT.search(str(price).replace(",", ""))
    return float(found[0]) if found else float("nan")
