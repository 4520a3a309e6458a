"""Amazon Reviews 2023: a review is a conversion.

A folder with `NAME.jsonl` and `meta_NAME.jsonl` (each may end in `.gz`) of one category or several.
Items are parent products (`parent_asin`); one that is in two categories is taken from the first.
Files are streamed a line at a time.
"""

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from simulators.imported.readers.columns import seconds
from simulators.imported.readers.errors import LogFormatError
from simulators.imported.readers.log import ItemTable, LogSource, Rows, register_format

_PIECE_LINES = 1 << 15
_REVIEW = ("user_id", "parent_asin", "timestamp")
_META = ("parent_asin", "title", "categories", "store", "main_category", "price")
_AMOUNT = r"(\d+(?:\.\d+)?)"
"""The number in e.g. `$1,299.00` (without its comma) or `from 9.99`."""


@register_format("amazon_reviews")
class AmazonReviews(LogSource):
    """A folder with reviews and meta data; see the module."""

    notes = (
        "A review stands for a purchase; there are no ads, impressions or clicks.",
        "A price is the one listed when the data was gathered.",
    )

    def __init__(self, source: Path) -> None:
        metas = sorted([*source.glob("meta_*.jsonl"), *source.glob("meta_*.jsonl.gz")])
        if not metas:
            raise LogFormatError(f"{source}: meta_*.jsonl or meta_*.jsonl.gz is missing")
        self._metas, self._reviews = metas, [_reviews_of(meta) for meta in metas]
        for paths, names in ((self._reviews, _REVIEW), (self._metas, _META)):
            for path in paths:
                first = next(_records(path, names, 1), None)
                if first is None:
                    raise LogFormatError(f"{path} has no rows")
                first.check_readable()
        categories = [path.name.partition(".")[0] for path in self._reviews]
        self.title = f"Amazon Reviews 2023 ({', '.join(categories)})"

    def rows(self) -> Iterator[Rows]:
        """Yield the reviews; see `LogSource`."""
        for path in self._reviews:
            for piece in _records(path, _REVIEW):
                cells = piece.frame
                frame = pd.DataFrame(
                    {
                        "user_id": _texts(cells["user_id"]),
                        "item_id": _texts(cells["parent_asin"]),
                        "timestamp": seconds(cells["timestamp"]),
                        "action": "conversion",
                    }
                )
                yield replace(piece, frame=frame)

    def items(self) -> ItemTable:
        """Return the products: title, categories and store; see `LogSource`."""
        parts = []
        for path in self._metas:
            for piece in _records(path, _META):
                piece.check_readable()
                parts.append(piece.frame)
        found = pd.concat(parts).drop_duplicates("parent_asin", ignore_index=True)
        categories = found["categories"].map(lambda names: names or [])
        text = [
            " ".join(str(word) for word in (title, *names, store) if word)
            for title, names, store in zip(found["title"], categories, found["store"], strict=True)
        ]
        price = found["price"].astype("str").str.replace(",", "")
        frame = pd.DataFrame(
            {
                "item_id": found["parent_asin"].astype("str"),
                "vertical": found["main_category"].astype("str"),
                "category": categories.str[-1].astype("str"),
                "advertiser": found["store"].astype("str"),
                "price": price.str.extract(_AMOUNT, expand=False).astype(float),
                "name": found["title"].astype("str"),
            }
        )
        return ItemTable(frame=frame, text=pd.Series(text, dtype="str"))


def _reviews_of(meta: Path) -> Path:
    stem = meta.name.removeprefix("meta_").partition(".jsonl")[0]
    for ending in (".jsonl", ".jsonl.gz"):
        if (path := meta.with_name(stem + ending)).exists():
            return path
    raise LogFormatError(f"{meta.parent}: {stem}.jsonl or {stem}.jsonl.gz is missing")


def _records(path: Path, names: tuple[str, ...], size: int = _PIECE_LINES) -> Iterator[Rows]:
    """Yield columns of a JSON lines file, as they are."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            numbered = enumerate(file, 1)
            while block := list(islice(numbered, size)):
                cells, unreadable = {}, []
                for number, line in block:
                    try:
                        record = json.loads(line)
                        cells[number] = [record[name] for name in names]
                    except (ValueError, TypeError):
                        unreadable.append((number, f"no JSON object: {line[:40]!r}"))
                    except KeyError as error:
                        unreadable.append((number, f"field {error} is missing"))
                frame = pd.DataFrame([*cells.values()], columns=list(names), dtype=object)
                yield Rows(frame, path, np.array([*cells], dtype=np.int64), tuple(unreadable))
    except (OSError, EOFError) as error:
        raise LogFormatError(f"{path} can't be read: {error}") from error


def _texts(cells: pd.Series) -> pd.Series:
    """Return ids as text; anything else counts as missing."""
    return cells.where([isinstance(cell, str) for cell in cells], None).astype("str")
