"""What the columns of a table hold, and how they become columns of pandas.

Dims: n rows.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, cast

import numpy as np
import pandas as pd
import pyarrow as pa

Kind = Literal["id", "integer", "number", "time", "flag", "text", "label", "any"]
"""What a column holds. `id`: integers or text (text, in a CSV). `time`: seconds, or a datetime,
which becomes UTC seconds (without a time zone it is taken as UTC). `flag`: true or false, 1 or 0.
`label`: text, or integers that become text."""

_Test = Callable[[pa.DataType], bool]


def is_text(of: pa.DataType) -> bool:
    """Return whether a column of a table is text."""
    return pa.types.is_string(of) or pa.types.is_large_string(of) or pa.types.is_string_view(of)


def _is_number(of: pa.DataType) -> bool:
    return pa.types.is_integer(of) or pa.types.is_floating(of) or pa.types.is_decimal(of)


_FLAGS = {"1": True, "true": True, "0": False, "false": False}
EXPECTED: dict[Kind, tuple[str, _Test]] = {
    "id": ("integers or text", lambda of: pa.types.is_integer(of) or is_text(of)),
    "integer": ("integers", pa.types.is_integer),
    "number": ("numbers", _is_number),
    "time": ("seconds or a datetime", lambda of: _is_number(of) or pa.types.is_timestamp(of)),
    "flag": (
        "true or false",
        lambda of: pa.types.is_boolean(of) or pa.types.is_integer(of) or is_text(of),
    ),
    "text": ("text", is_text),
    "label": ("text or integers", lambda of: pa.types.is_integer(of) or is_text(of)),
    "any": ("anything", lambda of: True),
}


def schema(**names: str) -> dict[str, Kind]:
    """Return what each column holds, e.g. of `integer="user_id item_id", label="city"`."""
    return {name: cast(Kind, kind) for kind, some in names.items() for name in some.split()}


def join_words(cells: pd.DataFrame) -> pd.Series:
    """Return the text of each row's cells, a blank between them; nothing counts as no word."""
    text = pd.Series("", index=cells.index, dtype="str")
    for name in cells:
        text = text + (" " + cells[name].astype("str")).fillna("")
    return text.str.strip()


def seconds(milliseconds: pd.Series) -> pd.Series:
    """Return whole seconds; cells that are no integers stay as they are."""
    if milliseconds.dtype == np.int64:
        return milliseconds // 1000
    return milliseconds.astype(object).map(lambda x: x // 1000 if isinstance(x, int) else x)


def convert(column: pa.Array, kind: Kind) -> pd.Series:
    """Return a column as pandas holds it: int64, float64 or str; object if some cells don't fit.

    Args:
        column: Of a Parquet table, or the bytes of a CSV's cells.
        kind: What it should hold; a cell that does not fit stays as text.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if kind == "any":
        return column.to_pandas()
    if pa.types.is_binary(column.type):
        column = _decoded(column)
    text = is_text(column.type)
    if kind == "flag":
        flags = _each(column, lambda cell: _FLAGS.get(str(cell).lower(), str(cell)))
        known = all(isinstance(flag, bool) for flag in flags)
        return pd.Series(flags, dtype=bool if known else object)
    if kind in ("text", "label") or (kind == "id" and text):
        return column.cast(pa.string()).to_pandas()
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("s", column.type.tz), safe=False)
    is_float = kind == "number" or (kind == "time" and pa.types.is_floating(column.type))
    try:
        target = pa.float64() if is_float else pa.int64()
        return column.cast(target).to_pandas(integer_object_nulls=True)
    except pa.ArrowInvalid:
        if not text:
            raise
        parse = _PARSERS.get(kind, _integer)
        return pd.Series(_each(column, partial(_read, parse=parse)), dtype=object)


def _decoded(column: pa.Array) -> pa.Array:
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array(_each(column, lambda cell: cell.decode(errors="replace")), pa.string())


def _each(column: pa.Array, change: Callable) -> list:
    return [None if cell is None else change(cell) for cell in column.to_pylist()]


def _read(text: str, parse: Callable[[str], int | float]) -> int | float | str:
    try:
        return parse(text)
    except ValueError:
        return text


def _integer(text: str) -> int:
    number = int(text)
    if abs(number) >= 1 << 63:
        raise ValueError("more than 64 bits")
    return number


def _second(text: str) -> int | float:
    try:
        return float(text)
    except ValueError:
        return int(pd.Timestamp(text).timestamp())


_PARSERS: dict[Kind, Callable[[str], int | float]] = {"number": float, "time": _second}
