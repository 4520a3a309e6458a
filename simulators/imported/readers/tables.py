"""Streaming CSV and Parquet tables, with the columns checked when a table is opened.

Pieces have at most `PIECE_ROWS` rows, so memory does not grow with the file. A cell of a CSV that
can't be read as what it should be stays as text: the reader loses no row, and the row check names
it. An empty cell, `NULL` and `null` mean that nothing is known.

Dims: n rows.
"""

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from simulators.imported.readers.columns import EXPECTED, Kind, convert
from simulators.imported.readers.log import LogFormatError

PIECE_ROWS = 1 << 17
_BLOCK_BYTES = 1 << 22
_NULLS = ["", "NULL", "null"]

_Batch = tuple[pa.RecordBatch, NDArray[np.int64], tuple[tuple[int, str], ...]]


def find_table(folder: Path, stem: str) -> Path | None:
    """Return `stem.parquet`, `stem.csv` or `stem.csv.gz` of a folder.

    Raises:
        LogFormatError: There are two of them, and they may differ.
    """
    found = [
        path
        for ending in (".parquet", ".csv", ".csv.gz")
        if (path := folder / f"{stem}{ending}").exists()
    ]
    if len(found) > 1:
        raise LogFormatError(f"{folder}: which one of {found[0].name} and {found[1].name} to read?")
    return found[0] if found else None


@dataclass(frozen=True)
class Piece:
    """Some rows of a table; see `simulators.imported.readers.log.Rows` for the fields."""

    frame: pd.DataFrame
    file: Path
    line: NDArray[np.int64]
    unreadable: tuple[tuple[int, str], ...] = ()


class Table:
    """A CSV file (`.gz` too), a Parquet file, or a folder of Parquet files with equal columns.

    Args:
        path: File or folder; a name that ends in `.parquet`, or a folder, is read as Parquet.
        delimiter: Of a CSV.
        quoted: Whether a CSV's cells may stand in double quotes.
        names: Column names of a CSV, in place of a header.
        skip_header: Whether there is a header that `names` replaces.
        encoding: Of a CSV.

    Raises:
        LogFormatError: The file is missing or can't be opened as what it should be.
    """

    def __init__(
        self,
        path: Path,
        *,
        delimiter: str = ",",
        quoted: bool = True,
        names: tuple[str, ...] | None = None,
        skip_header: bool = False,
        encoding: str = "utf8",
    ) -> None:
        if not path.exists():
            raise LogFormatError(f"{path} is missing")
        self.path = path
        self.is_csv = path.is_file() and path.suffix != ".parquet"
        self._files = [path] if path.is_file() else sorted(path.glob("*.parquet"))
        if not self._files:
            raise LogFormatError(f"{path} holds no *.parquet file")
        self._first_line = 2 if names is None or skip_header else 1
        self._read = {
            "encoding": encoding,
            "column_names": names,
            "skip_rows": int(skip_header),
            "use_threads": False,
        }
        self._parse = {"delimiter": delimiter, "quote_char": '"' if quoted else False}
        self._real_names: dict[str, str] = {}
        self.types = self._types(self._files[0])
        """Column names (without blanks around them) and types; a CSV's columns are all text."""

    def _types(self, file: Path) -> dict[str, pa.DataType]:
        try:
            if self.is_csv:
                with self._open_csv(file, None, lambda row: "skip", False) as reader:
                    self._real_names = {name.strip(): name for name in reader.schema.names}
                    return dict.fromkeys(self._real_names, pa.string())
            schema = pq.read_schema(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise LogFormatError(f"{file} can't be read: {error}") from error
        plain = (t.value_type if pa.types.is_dictionary(t) else t for t in schema.types)
        return dict(zip(schema.names, plain, strict=True))

    def require(self, columns: Mapping[str, Kind]) -> None:
        """Check that columns are there and have the right types.

        Raises:
            LogFormatError: The message names file, column and what was expected.
        """
        for file in self._files:
            types = self.types if file == self._files[0] else self._types(file)
            for name, kind in columns.items():
                expected, fits = EXPECTED[kind]
                if name not in types:
                    raise LogFormatError(
                        f"{file}: column {name!r} ({expected}) is missing; "
                        f"the file has {', '.join(map(repr, types))}"
                    )
                if not self.is_csv and not fits(types[name]):
                    raise LogFormatError(
                        f"{file}: column {name!r} must hold {expected}, got {types[name]}"
                    )

    def pieces(self, columns: Mapping[str, Kind], *, multiline: bool = False) -> Iterator[Piece]:
        """Yield the rows in the order of the file, with these columns.

        A line of a CSV where none of them is known is taken for an empty one and left out.

        Args:
            columns: Names and what they hold.
            multiline: Whether a quoted cell of a CSV may hold line ends; `line` then counts rows,
                and only a line that is empty is left out.
        """
        for file in self._files:
            names = list(columns)
            batches = (
                self._csv(file, names, multiline)
                if self.is_csv
                else _parquet(file, names, PIECE_ROWS)
            )
            for batch, line, unreadable in batches:
                cells = {name: convert(batch.column(name), kind) for name, kind in columns.items()}
                yield Piece(pd.DataFrame(cells), file, line, unreadable)

    def read(self, columns: Mapping[str, Kind]) -> pd.DataFrame:
        """Return all rows of a small table; here a cell or line that can't be read is an error.

        Raises:
            LogFormatError: The message names file, line and value.
        """
        parts = []
        for piece in self.pieces(columns, multiline=True):
            for line, reason in piece.unreadable:
                raise LogFormatError(f"{piece.file}:{line}: {reason}")
            for name, kind in columns.items():
                if (
                    kind in ("integer", "number", "time", "flag")
                    and piece.frame[name].dtype == object
                ):
                    wrong = piece.frame[name].map(lambda cell: isinstance(cell, str)).to_numpy()
                    for at in np.flatnonzero(wrong):
                        raise LogFormatError(
                            f"{piece.file}:{piece.line[at]}: column {name!r} must hold "
                            f"{EXPECTED[kind][0]}, got {piece.frame[name].iloc[at]!r}"
                        )
            parts.append(piece.frame)
        if not parts:
            raise LogFormatError(f"{self.path} has no rows")
        return pd.concat(parts, ignore_index=True)

    def _open_csv(
        self, file: Path, columns: list[str] | None, on_invalid: Callable, multiline: bool
    ) -> pa_csv.CSVStreamingReader:
        real = None if columns is None else [self._real_names[name] for name in columns]
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
                column_types=None if real is None else dict.fromkeys(real, pa.binary()),
                include_columns=real,
                null_values=_NULLS,
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )

    def _csv(self, file: Path, columns: list[str], multiline: bool) -> Iterator[_Batch]:
        """Yield batches of text with the line of each row, and the lines left out."""
        invalid: dict[int, str] = {}

        def left_out(row: pa_csv.InvalidRow) -> str:
            invalid[row.number] = f"{row.actual_columns} cells, must be {row.expected_columns}"
            return "skip"

        following = self._first_line
        try:
            with self._open_csv(file, columns, left_out, multiline) as reader:
                for whole in reader:
                    for start in range(0, len(whole), PIECE_ROWS):
                        batch = whole.slice(start, PIECE_ROWS).rename_columns(columns)
                        line = _lines(following, len(batch), invalid)
                        following = int(line[-1]) + 1
                        passed = sorted(n for n in invalid if n < following)
                        unreadable = tuple((n, invalid.pop(n)) for n in passed)
                        empty = np.all([column.is_null() for column in batch.columns], axis=0)
                        if empty.any() and not multiline:
                            batch, line = batch.filter(pa.array(~empty)), line[~empty]
                        yield batch, line, unreadable
        except pa.ArrowInvalid as error:
            raise LogFormatError(f"{file} can't be read: {error}") from error
        if invalid:
            none = pa.RecordBatch.from_pydict({name: pa.array([], "binary") for name in columns})
            yield none, np.zeros(0, dtype=np.int64), tuple(sorted(invalid.items()))


def _lines(first: int, num_rows: int, invalid: Container[int]) -> NDArray[np.int64]:
    """Return the numbers of the next lines that are rows."""
    return np.fromiter((n for n in count(first) if n not in invalid), np.int64, num_rows)


def read_batches(
    folder: Path, columns: list[str], batch_rows: int
) -> Iterator[tuple[Path, pa.RecordBatch, NDArray[np.int64]]]:
    """Yield the file, the columns as they are and the row numbers of a folder of Parquet files."""
    for file in sorted(folder.glob("*.parquet")):
        for batch, line, _ in _parquet(file, columns, batch_rows):
            yield file, batch, line


def _parquet(file: Path, columns: list[str], batch_rows: int) -> Iterator[_Batch]:
    line = 1
    with pq.ParquetFile(file, pre_buffer=False) as source:
        for batch in source.iter_batches(batch_rows, columns=columns):
            yield batch, np.arange(line, line + len(batch)), ()
            line += len(batch)
