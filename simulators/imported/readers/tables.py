"""Streaming CSV and Parquet tables, with the columns checked when a table is opened.

Pieces have at most `PIECE_ROWS` rows, so memory does not grow with the file. A cell of a CSV that
can't be read as what it should be stays as text: the reader loses no row, and the row check names
it. An empty cell, `NULL` and `null` mean that nothing is known.

Dims: n rows.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from simulators.imported.readers.columns import EXPECTED, Kind, convert
from simulators.imported.readers.errors import LogFormatError
from simulators.imported.readers.log import Rows

PIECE_ROWS = 1 << 17
_BLOCK_BYTES = 1 << 22
_NULLS = ["", "NULL", "null"]

_Batch = tuple[Path, pa.RecordBatch, NDArray[np.int64], tuple[tuple[int, str], ...]]


class Table:
    """A CSV file (`.gz` too), a Parquet file, or files of a folder with equal columns.

    Args:
        path: File or folder.
        columns: What it must hold, and what is read where no other columns are named.
        pattern: The files of a folder. Those that end in `.parquet` are read as Parquet.
        delimiter: Of a CSV. Between commas, cells may stand in double quotes.
        names: Column names of a CSV, in place of a header.
        skip_header: Whether there is a header that `names` replaces.
        encoding: Of a CSV.

    Raises:
        LogFormatError: The file is missing, can't be opened as what it should be, or lacks a
            column; see `require`.
    """

    def __init__(
        self,
        path: Path,
        columns: Mapping[str, Kind] | None = None,
        *,
        pattern: str = "*.parquet",
        delimiter: str = ",",
        names: tuple[str, ...] | None = None,
        skip_header: bool = False,
        encoding: str = "utf8",
    ) -> None:
        if not path.exists():
            raise LogFormatError(f"{path} is missing")
        files = [path] if path.is_file() else sorted(path.glob(pattern))
        if not files:
            raise LogFormatError(f"{path}: {pattern} is missing")
        self.path = files[0] if len(files) == 1 else path
        self.is_csv = files[0].suffix != ".parquet"
        self._first_line = 2 if names is None or skip_header else 1
        self._read = {
            "encoding": encoding,
            "column_names": names,
            "skip_rows": int(skip_header),
            "use_threads": False,
        }
        self._parse = {"delimiter": delimiter, "quote_char": '"' if delimiter == "," else False}
        self._fields = {file: self._schema(file) for file in files}
        self.types = {name: field.type for name, field in self._fields[files[0]].items()}
        """Column names (without blanks around them) and types; a CSV's columns are all text."""
        self.columns: Mapping[str, Kind] = {}
        self.require(columns or {})

    def _schema(self, file: Path) -> dict[str, pa.Field]:
        """Return the columns of a file; a field has the name as it stands there."""
        try:
            if self.is_csv:
                with self._open_csv(file, None, lambda row: "skip", False) as reader:
                    names = reader.schema.names
                return {name.strip(): pa.field(name, pa.string()) for name in names}
            schema = pq.read_schema(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise LogFormatError(f"{file} can't be read: {error}") from error
        plain = (t.value_type if pa.types.is_dictionary(t) else t for t in schema.types)
        return {name: pa.field(name, of) for name, of in zip(schema.names, plain, strict=True)}

    def require(self, columns: Mapping[str, Kind]) -> None:
        """Check that columns are there and have the right types, and read them if not told others.

        Raises:
            LogFormatError: The message names file, column and what was expected.
        """
        self.columns = columns
        for file, fields in self._fields.items():
            for name, kind in columns.items():
                expected, fits = EXPECTED[kind]
                if name not in fields:
                    raise LogFormatError(
                        f"{file}: column {name!r} ({expected}) is missing; "
                        f"the file has {', '.join(map(repr, fields))}"
                    )
                if not self.is_csv and not fits(fields[name].type):
                    raise LogFormatError(
                        f"{file}: column {name!r} must hold {expected}, got {fields[name].type}"
                    )

    def pieces(
        self, columns: Mapping[str, Kind] | None = None, *, multiline: bool = False
    ) -> Iterator[Rows]:
        """Yield the rows in the order of the file; by default the columns required last.

        A line of a CSV where none of the columns is known is taken for an empty one and left out.
        If `multiline`, a quoted cell of a CSV may hold line ends; `line` then counts rows, and only
        a line that is empty is left out.
        """
        columns = columns or self.columns
        for file, batch, line, unreadable in self.batches(list(columns), multiline=multiline):
            cells = {name: convert(batch.column(name), kind) for name, kind in columns.items()}
            yield Rows(pd.DataFrame(cells), file, line, unreadable)

    def read(self, columns: Mapping[str, Kind] | None = None) -> pd.DataFrame:
        """Return all rows of a small table; here a cell or line that can't be read is an error.

        Raises:
            LogFormatError: The message names file, line and value.
        """
        columns = columns or self.columns
        parts = []
        for piece in self.pieces(columns, multiline=True):
            piece.check_readable()
            for name, kind in columns.items():
                cells = piece.frame[name]
                if kind not in ("integer", "number", "time", "flag") or cells.dtype != object:
                    continue
                for line, cell in zip(piece.line, cells, strict=True):
                    if isinstance(cell, str):
                        raise LogFormatError(
                            f"{piece.file}:{line}: column {name!r} must hold "
                            f"{EXPECTED[kind][0]}, got {cell!r}"
                        )
            parts.append(piece.frame)
        if not parts:
            raise LogFormatError(f"{self.path} has no rows")
        return pd.concat(parts, ignore_index=True)

    def read_users(self, names: Mapping[str, str] | None = None) -> pd.DataFrame:
        """Return all rows with new names, one of them `user_id`; see `read`.

        Raises:
            LogFormatError: Also where an id is missing or occurs twice.
        """
        frame = self.read().rename(columns=names or {})
        user_id = frame["user_id"]
        for cell in user_id[user_id.isna() | user_id.duplicated()]:
            raise LogFormatError(
                f"{self.path}: column 'user_id' must be unique and filled, got {cell!r}"
            )
        return frame

    def batches(
        self, columns: list[str], size: int | None = None, *, multiline: bool = False
    ) -> Iterator[_Batch]:
        """Yield file, columns as they are, the line of each row, and lines that are no rows."""
        size = size or PIECE_ROWS
        for file in self._fields:
            if self.is_csv:
                yield from self._csv(file, columns, size, multiline)
                continue
            line = 1
            with pq.ParquetFile(file, pre_buffer=False) as source:
                for batch in source.iter_batches(size, columns=columns):
                    yield file, batch, np.arange(line, line + len(batch)), ()
                    line += len(batch)

    def _open_csv(
        self, file: Path, columns: list[str] | None, on_invalid: Callable, multiline: bool
    ) -> pa_csv.CSVStreamingReader:
        return pa_csv.open_csv(
            pa.input_stream(str(file)),
            read_options=pa_csv.ReadOptions(block_size=_BLOCK_BYTES, **self._read),
            parse_options=pa_csv.ParseOptions(
                ignore_empty_lines=multiline,
                newlines_in_values=multiline,
                invalid_row_handler=on_invalid,
                **self._parse,
            ),
            convert_options=pa_csv.ConvertOptions(
                check_utf8=False,
                column_types=dict.fromkeys(columns or (), pa.binary()),
                include_columns=columns,
                null_values=_NULLS,
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )

    def _csv(self, file: Path, columns: list[str], size: int, multiline: bool) -> Iterator[_Batch]:
        invalid: dict[int, str] = {}

        def left_out(row: pa_csv.InvalidRow) -> str:
            invalid[row.number] = f"{row.actual_columns} cells, must be {row.expected_columns}"
            return "skip"

        following = self._first_line
        names = [self._fields[file][name].name for name in columns]
        try:
            with self._open_csv(file, names, left_out, multiline) as reader:
                for whole in reader:
                    for start in range(0, len(whole), size):
                        batch = whole.slice(start, size).rename_columns(columns)
                        lines = (number for number in count(following) if number not in invalid)
                        line = np.fromiter(lines, np.int64, len(batch))
                        following = int(line[-1]) + 1
                        passed = sorted(number for number in invalid if number < following)
                        unreadable = tuple((number, invalid.pop(number)) for number in passed)
                        empty = np.all([column.is_null() for column in batch.columns], axis=0)
                        if empty.any() and not multiline:
                            batch, line = batch.filter(pa.array(~empty)), line[~empty]
                        yield file, batch, line, unreadable
        except pa.ArrowInvalid as error:
            raise LogFormatError(f"{file} can't be read: {error}") from error
        if invalid:
            none = pa.RecordBatch.from_pydict({name: pa.array([], "binary") for name in columns})
            yield file, none, np.zeros(0, dtype=np.int64), tuple(sorted(invalid.items()))
