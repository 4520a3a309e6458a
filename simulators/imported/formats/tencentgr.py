"""TencentGR-1M and -10M (TAAC2025) in the public Parquet layout: `seq`, `item_feat`, `user_feat`.

An event is an exposure (0), a click (1) or, in 10M, a conversion (2). All features are anonymous.
An item is its multimodal embedding 81 (text, 32 wide) if `mm_emb/emb_81_32_parquet` is there, with
`indexer.pkl` (read as plain values only) to find whose it is; else its features as words such as
`f101_17`.

Dims: n items, d embedding width.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from simulators.imported.readers.columns import Kind, convert, join_words, schema
from simulators.imported.readers.errors import LogFormatError
from simulators.imported.readers.log import ItemTable, LogSource, Rows, register_format
from simulators.imported.readers.safe_pickle import read_plain_pickle
from simulators.imported.readers.tables import Table

EMBEDDING_FOLDER = "mm_emb/emb_81_32_parquet"
_BATCH_USERS = 1024
_ACTIONS = {0: "impression", 1: "click", 2: "conversion"}
_EVENT = {"item_id": "item_id", "timestamp": "timestamp", "action_type": "action"}
_ITEM_ITSELF = "111"  # has as many values as there are items
_VERTICAL, _CATEGORY = "100", "117"
_USER = schema(integer="user_id", label="103 104 105 109")


@register_format("tencentgr")
class TencentGR(LogSource):
    """A folder in the Parquet layout; see the module."""

    title = "TencentGR"
    one_row_per_exposure = True

    def __init__(self, source: Path) -> None:
        self._seq = Table(source / "seq", schema(integer="user_id", any="seq"))
        _check_events(self._seq)
        self._items = Table(source / "item_feat")
        self._features = [
            name for name in self._items.types if name not in ("item_id", _ITEM_ITSELF)
        ]
        labels: dict[str, Kind] = dict.fromkeys((*self._features, _VERTICAL, _CATEGORY), "label")
        self._items.require(schema(integer="item_id") | labels)
        users = source / "user_feat"
        self._users = Table(users, _USER) if users.exists() else None
        self.notes = (
            f"Features are anonymous: {_VERTICAL} (6 values) stands for the vertical and "
            f"{_CATEGORY} (497 values) for the category.",
        )
        self._embedding: Table | None = None
        if (source / EMBEDDING_FOLDER).exists():
            self._embedding = Table(
                source / EMBEDDING_FOLDER, schema(id="anonymous_cid", any="emb")
            )
            self._indexer = source / "indexer.pkl"
            if not self._indexer.exists():
                raise LogFormatError(f"{self._indexer} is missing, which {EMBEDDING_FOLDER} needs")
            self.notes += ("Items without a multimodal embedding have a zero vector.",)

    def rows(self) -> Iterator[Rows]:
        """Yield the events; a line is the number of the user's row. See `LogSource`."""
        for file, batch, line, _ in self._seq.batches(["user_id", "seq"], _BATCH_USERS):
            events = batch.column("seq")
            lengths = pc.fill_null(pc.list_value_length(events), 0).to_numpy()
            struct = pc.list_flatten(events)
            frame = pd.DataFrame(
                {
                    name: convert(pc.struct_field(struct, field), "integer")
                    for field, name in _EVENT.items()
                }
            )
            users = convert(batch.column("user_id"), "integer")
            frame["user_id"] = users.repeat(lengths).to_numpy()
            code = frame["action"]
            frame["action"] = code.map(_ACTIONS).fillna("action_type " + code.astype(str))
            yield Rows(frame, file, np.repeat(line, lengths))

    def items(self) -> ItemTable:
        """Return the ads; see `LogSource`."""
        found = self._items.read()
        frame = pd.DataFrame(
            {
                "item_id": found["item_id"],
                "is_ad": True,
                "vertical": found[_VERTICAL],
                "category": found[_CATEGORY],
            }
        )
        if self._embedding is not None:
            return ItemTable(frame=frame, embedding=self._read_embedding(found["item_id"]))
        words = {name: f"f{name}_" + found[name] for name in self._features}
        return ItemTable(frame=frame, text=join_words(pd.DataFrame(words)))

    def users(self) -> pd.DataFrame:
        """Return the four scalar features as labels `f103`, ...; see `LogSource`."""
        if self._users is None:
            return super().users()
        return self._users.read_users({name: f"f{name}" for name in _USER if name.isdigit()})

    def _read_embedding(self, item_id: pd.Series) -> NDArray[np.float32]:
        """Return the embedding of each item, zeros where there is none, [n, d]."""
        assert self._embedding is not None
        raw_items = read_plain_pickle(self._indexer).get("i")
        if not isinstance(raw_items, dict):
            raise LogFormatError(f"{self._indexer}: key 'i' must hold a dict {{raw item: re-id}}")
        number = {str(raw): re_id for raw, re_id in raw_items.items()}
        row_of = pd.Index(item_id)
        matrix: NDArray[np.float32] | None = None
        for piece in self._embedding.pieces(schema(label="anonymous_cid", any="emb")):
            re_id = piece.frame["anonymous_cid"].map(number)
            row = row_of.get_indexer(re_id.fillna(-1).astype(np.int64))
            use = (row >= 0) & piece.frame["emb"].notna().to_numpy()
            cells = piece.frame["emb"][use]
            for at, cell, line in zip(row[use], cells, piece.line[use], strict=True):
                numbers = json.loads(cell) if isinstance(cell, str) else cell
                vector = np.asarray(numbers, dtype=np.float32)
                if matrix is None:
                    matrix = np.zeros((len(item_id), len(vector)), dtype=np.float32)
                if vector.shape != matrix.shape[1:]:
                    raise LogFormatError(
                        f"{piece.file}:{line}: column 'emb' must hold {matrix.shape[1]} numbers, "
                        f"got {len(vector)}"
                    )
                matrix[at] = vector
        if matrix is None:
            raise LogFormatError(f"{self._embedding.path}: no embedding belongs to an item")
        return matrix


def _check_events(seq: Table) -> None:
    of = seq.types["seq"]
    is_list = pa.types.is_list(of) or pa.types.is_large_list(of)
    if not is_list or not pa.types.is_struct(of.value_type):
        raise LogFormatError(f"{seq.path}: column 'seq' must hold lists of structs, got {of}")
    fields = {field.name: field.type for field in of.value_type}
    for name in _EVENT:
        if name not in fields or not pa.types.is_integer(fields[name]):
            raise LogFormatError(
                f"{seq.path}: column 'seq' must have an integer field {name!r}, got {of.value_type}"
            )
