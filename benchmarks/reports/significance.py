"""Paired tests for a few seeds, corrected for the number of declared comparisons."""

import numpy as np
from numpy.typing import ArrayLike

MAX_EXACT = 16
"""Up to here all 2^n sign flips are counted."""
_NUM_SAMPLED = 20_000
_TOLERANCE = 1e-12


def sign_flip_p_value(differences: ArrayLike, seed: int = 0) -> float:
    """Return the two-sided p-value of a mean difference of 0, by flipping signs of the pairs.

    Exact for at most 16 pairs, sampled above. With n pairs the smallest possible value is 2 / 2^n:
    .25 at 3 seeds, .06 at 5, .002 at 10. `scipy.stats.permutation_test` counts the same up to 16
    pairs, but samples other flips above, so published values would change.

    Args:
        differences: [n], finite; method minus baseline under one seed each.
        seed: Of the sampled flips.

    Raises:
        ValueError: Empty or non-finite differences.
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 1 or d.size == 0 or not np.isfinite(d).all():
        raise ValueError(f"differences must be finite and [n], got shape {d.shape}")
    if len(d) <= MAX_EXACT:
        bits = np.arange(2 ** len(d))[:, None] >> np.arange(len(d)) & 1
        signs = 1.0 - 2.0 * bits
    else:
        drawn = np.random.default_rng(seed).integers(2, size=(_NUM_SAMPLED, len(d)))
        signs = np.concatenate([np.ones((1, len(d))), 1.0 - 2.0 * drawn])
    flipped = np.abs(signs @ d)
    return float((flipped >= abs(d.sum()) - _TOLERANCE * np.abs(d).sum()).mean())


def smallest_p_value(num_pairs: int) -> float:
    """Return the smallest value that `sign_flip_p_value` can have with so many pairs."""
    return 2.0 / 2**num_pairs if num_pairs <= MAX_EXACT else 1.0 / (_NUM_SAMPLED + 1)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Return Holm's adjusted p-values [m], which control the chance of any false discovery.

    The i-th smallest of m is multiplied by m - i + 1, kept in order and at most 1.

    Raises:
        ValueError: A value outside [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0.0) & (p <= 1.0)).all():
        raise ValueError(f"p-values must be [m] and lie in [0, 1], got {p.tolist()}")
    order = np.argsort(p, kind="stable")
    scaled = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(scaled, 1.0)
    return adjusted
