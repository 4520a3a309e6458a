"""How fast RQ-KMeans fits and encodes, and how much memory a file larger than it takes.

Every figure comes from a process of its own, with one thread and with two.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.measure.memory import PeakMemory, in_fresh_process
from benchmarks.measure.timing import matrix_rate, median_seconds, timed, torch_threads
from benchmarks.runs.results import tidy
from benchmarks.tokenizers.presets import MACHINE, SUITE, TokenizersPreset
from gpr_rl.tokenizers import RQKMeans
from gpr_rl.tokenizers.streaming import encode_file

WIDTH, LEVELS, CODES = 64, 3, 256
THREADS = (1, 2)
NUM_CENTRES = 500
_PIECE = 100_000


def measure_speed(*, seed: int, sizes: TokenizersPreset) -> pd.DataFrame:
    """Return the figures of the machine on one seed, as tidy rows."""
    found = in_fresh_process(fit_and_encode, seed=seed, num_items=sizes.speed_items)
    stream = in_fresh_process(encode_stream, seed=seed, num_items=sizes.stream_items)
    rows = [tidy(SUITE, MACHINE, seed, metrics, threads=n) for n, metrics in found.items()]
    return pd.concat([*rows, tidy(SUITE, MACHINE, seed, stream, part="stream")])


def clustered_rows(num_items: int, rng: np.random.Generator, centres: np.ndarray) -> np.ndarray:
    """Return float32 rows [num_items, 64] around the centres."""
    near = centres[rng.integers(len(centres), size=num_items)]
    return near + rng.standard_normal((num_items, WIDTH), dtype=np.float32)


def _centres(rng: np.random.Generator) -> np.ndarray:
    return 1.5 * rng.standard_normal((NUM_CENTRES, WIDTH), dtype=np.float32)


def fit_and_encode(*, seed: int, num_items: int) -> dict[int, dict[str, float]]:
    """Time a fit (one thread, always) and encoding with one thread and with two.

    Returns:
        By threads; the fit, which does not depend on them, under 0.
    """
    rng = np.random.default_rng(seed)
    x = clustered_rows(num_items, rng, _centres(rng))
    started = time.perf_counter()
    tokenizer = RQKMeans(LEVELS, CODES, seed).fit(x)
    metrics = {0: {"rq_kmeans_fit_s": time.perf_counter() - started}}
    tensor = torch.from_numpy(x)
    for threads in THREADS:
        with torch_threads(threads):
            seconds = median_seconds({"encode": timed(lambda: tokenizer.encode(tensor))}, 3, 0)
            rate = matrix_rate()
        encoded = num_items / seconds["encode"]
        metrics[threads] = {
            "encoded_per_s": encoded,
            "matrix_gflop_per_s": rate,
            "share_of_matrix_per_s": encoded * (2e-9 * LEVELS * CODES * WIDTH) / rate,
        }
    return metrics


def encode_stream(*, seed: int, num_items: int) -> dict[str, float]:
    """Time and measure the encoding of a Parquet file of float16 lists, with two threads."""
    rng = np.random.default_rng(seed)
    centres = _centres(rng)
    tokenizer = RQKMeans(LEVELS, CODES, seed, num_iterations=5)
    tokenizer.fit(clustered_rows(20_000, rng, centres))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "embeddings.parquet"
        schema = pa.schema([("embedding", pa.list_(pa.float16(), WIDTH))])
        with pq.ParquetWriter(source, schema) as writer:
            for start in range(0, num_items, _PIECE):
                rows = clustered_rows(min(_PIECE, num_items - start), rng, centres)
                flat = pa.array(rows.astype(np.float16).ravel())
                column = pa.FixedSizeListArray.from_arrays(flat, WIDTH)
                writer.write_table(pa.Table.from_arrays([column], schema=schema))
        codes = Path(folder) / "codes.parquet"
        with torch_threads(2), PeakMemory() as memory:
            seconds = timed(lambda: encode_file(tokenizer, source, codes))()
    metrics = {"encoded_per_s": num_items / seconds, "num_items": float(num_items)}
    if memory.peak_mib is not None:
        metrics["peak_mib"] = memory.peak_mib
    return metrics
