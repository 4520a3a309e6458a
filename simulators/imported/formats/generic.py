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
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import load_file

from simulators.imported.readers.columns import Kind, is_text, join_words, no_users, unique_ids
from simulators.imported.readers.log import ItemTable, LogFormatError, Rows, register_format
from simulators.imported.readers.tables import Table, find_table

ACTION_WORDS = {
    "view": "view",
    "pv": "view",
    "browse": "view",
    "organic": "view",
    "impression": "impression",
    "exposure": "impression",
    "show": "impression",
    "click": "click",
    "clk": "click",
    "conversion": "conversion",
    "purchase": "conversion",
    "buy": "conversion",
    "order": "conversion",
}
"""Words for the four actions. A cart or a wish list has none: say what they are to count as."""
_OPTIONAL: dict[str, Kind] = {
    "value": "number",
    "price": "number",
    "bid": "number",
    "scene": "label",
    "place": "id",
}
_ATTRIBUTES: dict[str, Kind] = {
    "is_ad": "flag",
    "vertical": "label",
    "category": "label",
    "advertiser": "label",
    "price": "number",
    "bid": "number",
    "budget": "number",
    "bid_type": "text",
    "name": "text",
}
_WIDE = re.compile(r"(?:emb|embedding)_(\d+)")


@register_format("generic")
class GenericLog:
    """A folder in the interactions format; see the module."""

    notes: tuple[str, ...] = ()
    simulated: tuple[str, ...] = ()
    one_row_per_exposure = False

    def __init__(self, source: Path) -> None:
        self._folder = source
        self.title = source.name
        self._rows = self._open("interactions")
        optional = {name: kind for name, kind in _OPTIONAL.items() if name in self._rows.types}
        self._columns: dict[str, Kind] = {
            "user_id": "id",
            "item_id": "id",
            "timestamp": "time",
            "action": "text",
            **optional,
        }
        self._rows.require(self._columns)
        self._items = self._open("items")
        self._labels: dict[str, Kind] = {"item_id": self._as_logged("item_id")} | {
            name: kind for name, kind in _ATTRIBUTES.items() if name in self._items.types
        }
        self._items.require(self._labels)
        self._users = self._open("users") if find_table(source, "users") else None
        if self._users is not None:
            self._users.require({"user_id": self._as_logged("user_id")})
        self._offers = self._open("offers") if find_table(source, "offers") else None
        if self._offers is not None:
            if "place" not in optional:
                raise LogFormatError(
                    f"{self._rows.path}: column 'place' is missing, which {self._offers.path} needs"
                )
            self._offers.require(self._offer_columns())

    def rows(self) -> Iterator[Rows]:
        """Yield the interactions; see `LogSource`."""
        for piece in self._rows.pieces(self._columns):
            word = piece.frame["action"].str.strip().str.lower()
            action = word.map(ACTION_WORDS).fillna(piece.frame["action"])
            frame = piece.frame.assign(action=action)
            yield Rows(frame, piece.file, piece.line, piece.unreadable)

    def items(self) -> ItemTable:
        """Return the items; see `LogSource`."""
        embedding = self._embedding()
        words = [] if embedding is not None else self._text_columns()
        frame = self._items.read(self._labels | dict.fromkeys(words, "text"))
        if "bid_type" in frame:
            frame["bid_type"] = frame["bid_type"].str.upper()
        text = join_words(frame[words]) if words else None
        return ItemTable(
            frame=frame[list(self._labels)],
            embedding=None if embedding is None else embedding.astype(np.float32),
            text=text,
        )

    def users(self) -> pd.DataFrame:
        """Return the users' table; see `LogSource`."""
        if self._users is None:
            return no_users()
        columns: dict[str, Kind] = {
            name: "number" if name == "age" else "label" for name in self._users.types
        }
        columns["user_id"] = self._as_logged("user_id")
        self._users.require(columns)
        return unique_ids(self._users.read(columns), "user_id", self._users.path)

    def offers(self) -> Iterator[pd.DataFrame]:
        """Yield what could be shown where; see `LogSource`."""
        if self._offers is not None:
            for piece in self._offers.pieces(self._offer_columns()):
                yield piece.frame

    def _open(self, stem: str) -> Table:
        path = find_table(self._folder, stem)
        if path is None:
            raise LogFormatError(f"{self._folder}: {stem}.parquet, .csv or .csv.gz is missing")
        return Table(path)

    def _as_logged(self, name: str) -> Kind:
        """Return how ids are read so that they equal those of the interactions."""
        return "label" if is_text(self._rows.types[name]) else "integer"

    def _offer_columns(self) -> dict[str, Kind]:
        return {name: self._as_logged(name) for name in ("place", "item_id")}

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
        sources = [
            path
            for name in ("embeddings.npy", "embeddings.safetensors")
            if (path := self._folder / name).exists()
        ]
        found = [path.name for path in sources]
        found += ["column 'embedding'"] if "embedding" in types else []
        found += [f"columns {wide[min(wide)]!r}, ..."] if wide else []
        if len(found) > 1:
            raise LogFormatError(f"{self._folder}: two embeddings, {found[0]} and {found[1]}")
        if sources:
            return _read_matrix(sources[0])
        if "embedding" in types:
            return _list_column(self._items)
        if not wide:
            return None
        if sorted(wide) != list(range(len(wide))):
            raise LogFormatError(
                f"{self._items.path}: embedding columns must be numbered from 0 without gaps, "
                f"got {', '.join(wide[at] for at in sorted(wide))}"
            )
        names = [wide[at] for at in range(len(wide))]
        self._items.require(dict.fromkeys(names, "number"))
        return self._items.read(dict.fromkeys(names, "number")).to_numpy(dtype=np.float32)


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
