"""Codes of more items than fit into memory: Parquet in, Parquet out, a piece at a time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gpr_rl.files import complete_file
from gpr_rl.tokenizers.base import Tokenizer
from gpr_rl.tokenizers.files import BATCH_ROWS, iterate_matrix, load_matrix


def encode_file(
    tokenizer: Tokenizer,
    embeddings: str | Path,
    out: str | Path,
    *,
    column: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write the codes of a file of embeddings to a Parquet table and return the number of rows.

    The table has an int32 column per level, `code_1` to `code_L`, in the order of the rows. It
    appears, in place of an older one, when it is complete. A `.parquet` file is read in pieces, a
    `.npy` file is mapped into memory; `column` is as in `files.load_matrix`. A `UASID` hashes
    contents. `progress` is called with the rows done after each piece.

    Raises:
        ValueError: A file that can't be read, or a row with NaN or infinity; it names the rows of
            the piece and where the piece begins. Nothing is written then.
    """
    embeddings, out = Path(embeddings), Path(out)
    if embeddings.suffix == ".parquet":
        pieces = iterate_matrix(embeddings, column, BATCH_ROWS)
    else:
        matrix = load_matrix(embeddings, column)
        starts = range(0, len(matrix), BATCH_ROWS)
        pieces = (np.asarray(matrix[start : start + BATCH_ROWS]) for start in starts)
    names = [f"code_{level + 1}" for level in range(tokenizer.num_levels)]
    schema = pa.schema([(name, pa.int32()) for name in names])
    num_rows = 0
    with complete_file(out) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for piece in pieces:
            try:
                codes = tokenizer.encode(piece).numpy().astype(np.int32)
            except ValueError as error:
                raise ValueError(f"{embeddings}, from row {num_rows} on: {error}") from error
            columns = [pa.array(codes[:, level]) for level in range(len(names))]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            num_rows += len(codes)
            if progress is not None:
                progress(num_rows)
    return num_rows
