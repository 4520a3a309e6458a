"""Embedding matrices in files: `.npy`, `.safetensors`, or columns of a Parquet table.

Dims: n rows, d embedding width.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

SUFFIXES = (".npy", ".safetensors", ".parquet")
BATCH_ROWS = 65_536
_NUMPY_KNOWS = (torch.float16, torch.float32, torch.float64)
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def load_matrix(path: str | Path, column: str | None = None) -> NDArray:
    """Return the matrix [n, d] of a `.npy` (mapped, no pickles), `.safetensors` or `.parquet` file.

    It keeps its float type. `column` names the tensor, or the Parquet column of lists; None: the
    only two-dimensional tensor, or what `embedding_columns` finds.

    Raises:
        ValueError: Another ending, a file that can't be read, no such column, or more than one
            candidate; the message names the file.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: embeddings are read from {', '.join(SUFFIXES)} files")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        if path.suffix == ".npy":
            return _load_npy(path)
        if path.suffix == ".safetensors":
            return _load_safetensors(path, column)
        parts = list(iterate_matrix(path, column))
    except (OSError, SafetensorError, pa.ArrowException) as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    return np.concatenate(parts) if parts else np.zeros((0, 0), dtype=np.float32)


def iterate_matrix(
    path: str | Path, column: str | None = None, batch_rows: int = BATCH_ROWS
) -> Iterator[NDArray]:
    """Yield the matrix of a Parquet file in pieces [<= batch_rows, d].

    Raises:
        ValueError: No embedding columns, a null, or lists of different lengths.
    """
    source = pq.ParquetFile(path, pre_buffer=False)
    names = embedding_columns(source.schema_arrow, str(path), column)
    first = 0
    width = None
    # one row group after the other: a reader of all of them keeps the whole file in memory
    groups = range(source.num_row_groups)
    batches = (source.iter_batches(batch_rows, row_groups=[g], columns=names) for g in groups)
    for batch in chain.from_iterable(batches):
        part = _matrix_of(batch, names, f"{path}, rows from {first}")
        if width not in (None, part.shape[1]):
            raise ValueError(
                f"{path}, rows from {first}: {part.shape[1]} numbers per row after {width}"
            )
        width = part.shape[1]
        first += len(part)
        yield part


def embedding_columns(schema: pa.Schema, where: str, column: str | None = None) -> list[str]:
    """Return a table's one column of float lists, or else all float columns, in the table's order.

    Raises:
        ValueError: None, or several columns of lists; or `column` is none of them.
    """
    lists = [
        f.name
        for f in schema
        if any(is_list(f.type) for is_list in _LISTS) and pa.types.is_floating(f.type.value_type)
    ]
    if column is not None:
        if column not in lists:
            raise ValueError(f"{where}: no column of float lists named {column!r}; has {lists}")
        return [column]
    if len(lists) > 1:
        raise ValueError(f"{where}: several columns of float lists, name one of {lists}")
    found = lists or [f.name for f in schema if pa.types.is_floating(f.type)]
    if not found:
        raise ValueError(f"{where}: neither a column of float lists nor float columns")
    return found


def _matrix_of(batch: pa.RecordBatch, names: list[str], where: str) -> NDArray:
    for name in names:
        if batch.column(name).null_count:
            raise ValueError(f"{where}: column {name!r} holds nulls")
    kind = batch.schema.field(names[0]).type
    if pa.types.is_floating(kind):
        return np.stack([batch.column(name).to_numpy() for name in names], axis=1)
    rows, is_fixed = batch.column(names[0]), pa.types.is_fixed_size_list(kind)
    flat = rows.flatten().to_numpy(zero_copy_only=False)
    if len(rows) == 0:
        return flat.reshape(0, kind.list_size if is_fixed else 0)
    width = len(flat) // len(rows)
    if not is_fixed and not (np.diff(rows.offsets.to_numpy()) == width).all():
        raise ValueError(f"{where}: column {names[0]!r} holds lists of different lengths")
    return flat.reshape(len(rows), width)


def _load_npy(path: Path) -> NDArray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:  # objects, or no .npy file
        raise ValueError(f"{path} can't be read: {error}") from error


def _load_safetensors(path: Path, name: str | None) -> NDArray:
    with safe_open(path, framework="pt") as file:
        names = [key for key in file.keys() if len(file.get_slice(key).get_shape()) == 2]  # noqa: SIM118
        if name is None and len(names) != 1:
            raise ValueError(f"{path}: name one of its matrices {names}")
        if name is not None and name not in names:
            raise ValueError(f"{path}: no matrix named {name!r}; has {names}")
        tensor = file.get_tensor(name or names[0])
    return (tensor.float() if tensor.dtype not in _NUMPY_KNOWS else tensor).numpy()
