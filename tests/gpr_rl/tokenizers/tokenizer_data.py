"""Rows that the tests of tokenizers share."""

import numpy as np


def clusters(num_rows: int = 400, width: int = 8, seed: int = 0) -> np.ndarray:
    """Return float32 rows around twelve centres."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((12, width)) * 3
    rows = centre[rng.integers(12, size=num_rows)] + rng.standard_normal((num_rows, width))
    return rows.astype(np.float32)
