"""Any log in the package's own interactions format.

A folder with these tables, each as `.parquet` (a file or a folder of them), `.csv` or `.csv.gz`:

- `interactions`: `user_id`, `item_id`, `timestamp`, `action` and any of `value`, `price`, `bid`,
  `scene`, `place`. Other columns are ignored. A timestamp is a number of seconds since 1970 or a
  datetime, UTC unless it says otherwise. An action is a word of `ACTION_WORDS`, in any case.
- `items`: `item_id` and any attribute of `ItemTable`. What an item is comes from exactly one of: a
  matrix file (`embeddings.npy` or `embeddings.safetensors`, a row per row of `items`), a list
  column `embedding`, number columns `emb_0`, `emb_1`, ... or `embedding_0`, ...; without one,
  all text columns that are neither ids (`..._id`) nor attributes are joined to the item's words,
  together with `name`. Every column of a CSV is text.
- `users` (optional): `user_id` and attributes.
- `offers` (optional): `place` and `item_id`, which ads could be shown where.

Ids in a CSV are text, so that `007` stays what it is. Where one table is a CSV and another is
Parquet, ids are read as those of `interactions` are.

Dims: n items, d embedding width.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import load_file

from simulators.imported.readers.columns import Kind, is_text, join_words, schema
from simulators.imported.readers.errors import LogFormatError
from simulators.imported.readers.log import ItemTable, LogSource, Rows, register_format
from simulators.imported.readers.tables import Table

ACTION_WORDS = {
    word: action
    for action, words in {
        "view": "view pv browse organic",
        "impression": "impression exposure show",
        "click": "click clk",
        "conversion": "conversion purchase buy order",
    }.items()
    for word in words.split()
}
"""Words for the four actions. A cart or a wish list has none: say what they are to count as."""
_REQUIRED = schema(id="user_id item_id", time="timestamp", text="action")
_OPTIONAL = schema(number="value price bid", label="scene", id="place")
_ATTRIBUTES = schema(
    flag="is_ad",
    label="vertical category advertiser",
    number="price bid budget",
    text="bid_type name",
)
_AGE = schema(number="age")
_WIDE = re.compile(r"(?:emb|embedding)_(\d+)")


@register_format("generic")
class GenericLog(LogSource):
    """A folder in the interactions format; see the module."""

    def __init__(self, source: Path) -> None:
        self._folder = source
        self.title = source.name
        self._rows = _needed(source, "interactions")
        self._rows.require(_REQUIRED | _known(_OPTIONAL, self._rows))
        self._items = _needed(source, "items")
        self._labels = self._as_logged("item_id") | _known(_ATTRIBUTES, self._items)
        self._items.require(self._labels)
        self._users = _find_table(source, "users")
        if self._users is not None:
            labels: dict[str, Kind] = dict.fromkeys(self._users.types, "label")
            known = _known(_AGE, self._users) | self._as_logged("user_id")
            self._users.require(labels | known)
        self._offers = _find_table(source, "offers")
        if self._offers is not None:
            if "place" not in self._rows.columns:
                raise LogFormatError(
                    f"{self._rows.path}: column 'place' is missing, which {self._offers.path} needs"
                )
            self._offers.require(self._as_logged("place", "item_id"))

    def rows(self) -> Iterator[Rows]:
        """Yield the interactions; see `LogSource`."""
        for piece in self._rows.pieces():
            word = piece.frame["action"].str.strip().str.lower()
            action = word.map(ACTION_WORDS).fillna(piece.frame["action"])
            yield replace(piece, frame=piece.frame.assign(action=action))

    def items(self) -> ItemTable:
        """Return the items; see `LogSource`."""
        embedding = self._embedding()
        words = [] if embedding is not None else self._text_columns()
        frame = self._items.read(self._labels | dict.fromkeys(words, "text"))
        if "bid_type" in frame:
            frame["bid_type"] = frame["bid_type"].str.upper()
        return ItemTable(
            frame=frame[list(self._labels)],
            embedding=None if embedding is None else embedding.astype(np.float32),
            text=join_words(frame[words]) if words else None,
        )

    def users(self) -> pd.DataFrame:
        """Return the users' table; see `LogSource`."""
        return super().users() if self._users is None else self._users.read_users()

    def offers(self) -> Iterator[pd.DataFrame]:
        """Yield what could be shown where; see `LogSource`."""
        for piece in self._offers.pieces() if self._offers else ():
            yield piece.frame

    def _as_logged(self, *names: str) -> dict[str, Kind]:
        """Return how ids are read so that they equal those of the interactions."""
        return {n: "label" if is_text(self._rows.types[n]) else "integer" for n in names}

    def _text_columns(self) -> list[str]:
        """Return the columns that make an item's words."""
        labels = set(self._labels) - {"name"}
        words = [
            name
            for name, of in self._items.types.items()
            if is_text(of) and name not in labels and not name.endswith("_id")
        ]
        if not words:
            raise LogFormatError(
                f"{self._items.path}: nothing says what an item is; one of these is needed: "
                "embeddings.npy or embeddings.safetensors beside it, a list column 'embedding', "
                "number columns 'emb_0', 'emb_1', ..., or text columns such as 'name'"
            )
        return words

    def _embedding(self) -> NDArray | None:
        """Return the one embedding there is, [n, d]; None if there is none."""
        types = self._items.types
        wide = {int(m[1]): name for name in types if (m := _WIDE.fullmatch(name))}
        names = [wide[at] for at in sorted(wide)]
        found: dict[str, Callable[[], NDArray]] = {}
        for name in ("embeddings.npy", "embeddings.safetensors"):
            if (path := self._folder / name).exists():
                found[name] = partial(_read_matrix, path)
        if "embedding" in types:
            found["column 'embedding'"] = partial(_list_column, self._items)
        if wide:
            found[f"columns {names[0]!r}, ..."] = partial(_wide_columns, self._items, names)
        if len(found) > 1:
            raise LogFormatError(f"{self._folder}: two embeddings, {' and '.join([*found][:2])}")
        for read in found.values():
            return read()
        return None


def _find_table(folder: Path, stem: str) -> Table | None:
    """Open `stem.parquet`, `.csv` or `.csv.gz`; two of them are an error, as they may differ."""
    paths = [folder / f"{stem}{ending}" for ending in (".parquet", ".csv", ".csv.gz")]
    found = [path for path in paths if path.exists()]
    if len(found) > 1:
        raise LogFormatError(f"{folder}: which one of {found[0].name} and {found[1].name} to read?")
    return Table(found[0]) if found else None


def _needed(folder: Path, stem: str) -> Table:
    table = _find_table(folder, stem)
    if table is None:
        raise LogFormatError(f"{folder}: {stem}.parquet, .csv or .csv.gz is missing")
    return table


def _known(optional: dict[str, Kind], table: Table) -> dict[str, Kind]:
    """Return those of the columns that a table has."""
    return {name: kind for name, kind in optional.items() if name in table.types}


def _read_matrix(path: Path) -> NDArray:
    """Return the matrix of a file beside the items."""
    try:
        if path.suffix == ".npy":
            matrix = np.load(path, allow_pickle=False)
        else:
            tensors = load_file(path)
            if len(tensors) != 1:
                raise ValueError(f"it must hold one matrix, got {len(tensors)}")
            (matrix,) = tensors.values()
    except Exception as error:
        raise LogFormatError(f"{path} can't be read: {error}") from error
    if matrix.ndim != 2 or not np.issubdtype(matrix.dtype, np.floating):
        raise LogFormatError(
            f"{path} must hold a matrix of floats, got {matrix.dtype} of shape {matrix.shape}"
        )
    return matrix


def _wide_columns(table: Table, names: list[str]) -> NDArray:
    """Return number columns as a matrix."""
    if [int(name.rpartition("_")[2]) for name in names] != list(range(len(names))):
        raise LogFormatError(
            f"{table.path}: embedding columns must be numbered from 0 without gaps, "
            f"got {', '.join(names)}"
        )
    columns = schema(number=" ".join(names))
    table.require(columns)
    return table.read(columns).to_numpy(dtype=np.float32)


def _list_column(table: Table) -> NDArray:
    """Return the lists of the column `embedding` as a matrix."""
    of = table.types["embedding"]
    lists = pa.types.is_list(of) or pa.types.is_large_list(of) or pa.types.is_fixed_size_list(of)
    if not lists or not pa.types.is_floating(of.value_type):
        raise LogFormatError(
            f"{table.path}: column 'embedding' must hold lists of floats, got {of}"
        )
    column = table.read({"embedding": "any"})["embedding"]
    lengths = column.map(lambda row: -1 if row is None else len(row))
    if lengths.nunique() != 1 or lengths.iloc[0] < 1:
        row = int((lengths != lengths.iloc[0]).argmax())
        raise LogFormatError(
            f"{table.path}: column 'embedding' must hold lists of one length, got "
            f"{lengths.iloc[0]} in row 1 and {lengths.iloc[row]} in row {row + 1}"
        )
    return np.stack(column.to_list())
