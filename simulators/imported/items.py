"""Which items of a log are ads and organic items, and their embeddings.

Dims: I items of the log, N ads, M organic items, d embedding width.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, csr_matrix
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from gpr_rl.data.streams import IntArray
from gpr_rl.schema import Action
from simulators.imported.config import ImportConfig
from simulators.imported.labels import group_numbers
from simulators.imported.readers.log import ItemTable

_SVD_SEED = 0


@dataclass(frozen=True)
class Chosen:
    """The items that a world has, as rows of the item table."""

    ad: IntArray
    """Rising, [N]."""
    organic: IntArray
    """Rising, [M]; an item may be both."""

    @property
    def both(self) -> IntArray:
        """All of them, [N + M]."""
        return np.r_[self.ad, self.organic]


def most_frequent(values: NDArray, size: int | None) -> IntArray:
    """Return the `size` most frequent values in rising order; ties go to the lowest value."""
    value, count = np.unique(values, return_counts=True)
    return np.sort(value[np.argsort(-count, kind="stable")[:size]]).astype(np.int64)


def positions(values: IntArray, wanted: NDArray) -> IntArray:
    """Return where each of `wanted` is in the rising `values`, -1 if it is not there."""
    return pd.Index(values).get_indexer(wanted)


def group_columns(frame: pd.DataFrame, config: ImportConfig) -> dict[str, IntArray]:
    """Return vertical, category and advertiser numbers of the rows of an item table."""
    sizes = {
        "vertical": config.num_verticals,
        "category": config.num_categories,
        "advertiser": config.num_advertisers,
    }
    frame = frame.reindex(columns=list(sizes))  # what is not known has number 0
    return {name: group_numbers(frame[name], size) for name, size in sizes.items()}


def embed_items(
    items: ItemTable, chosen: Chosen, logged: pd.DataFrame, config: ImportConfig
) -> NDArray[np.float32]:
    """Return what an item is and who took or viewed it, float32 [N + M, d].

    The first part is the item table's own matrix as it is, or its text (TF-IDF, truncated SVD).
    Thousands of items may share their text, so the second part (a truncated SVD of items by users)
    has the same mean square. An item that is both ad and organic has one embedding for both.
    """
    distinct, row = np.unique(chosen.both, return_inverse=True)
    if items.embedding is not None:
        parts: list[NDArray] = [items.embedding[distinct]]
    else:
        assert items.text is not None
        parts = [embed_text(items.text.iloc[distinct], config.text_dim)]
    if config.behavior_dim:
        behavior = _reduced(_takers(distinct, logged), config.behavior_dim)
        behavior -= behavior.mean(0)
        scale = _root_mean_square(parts[0]) / max(_root_mean_square(behavior), 1e-12)
        parts.append(behavior * scale)
    return np.concatenate(parts, axis=1).astype(np.float32)[row]


def embed_text(text: pd.Series, width: int) -> NDArray[np.float32]:
    """Return TF-IDF vectors, reduced by a truncated SVD to mean square 1, float32 [n, width]."""
    words = TfidfVectorizer(token_pattern=r"\w+", sublinear_tf=True)
    content = _reduced(words.fit_transform(text.fillna("").astype(str)), width)
    return (content / max(_root_mean_square(content), 1e-12)).astype(np.float32)


def _takers(distinct: IntArray, logged: pd.DataFrame) -> csr_matrix:
    """Return log(1 + times) that each user took or viewed each item."""
    row = positions(distinct, logged["item"].to_numpy())
    known = (row >= 0) & (logged["action"].to_numpy() != Action.IMPRESSION)
    user = logged["user_id"].to_numpy()[known]
    cells = (np.ones(len(user), dtype=np.float32), (row[known], user))
    shape = (len(distinct), int(user.max(initial=0)) + 1)
    matrix = coo_matrix(cells, shape=shape).tocsr()
    matrix.data = np.log1p(matrix.data)
    return matrix


def _reduced(matrix: csr_matrix, width: int) -> NDArray[np.floating]:
    """Return a truncated SVD of the normalised rows; a small matrix has fewer columns."""
    width = min(width, *(size - 1 for size in matrix.shape))
    if width < 1:
        return np.zeros((matrix.shape[0], 0))
    return TruncatedSVD(width, random_state=_SVD_SEED).fit_transform(normalize(matrix))


def _root_mean_square(x: NDArray) -> float:
    return float(np.sqrt((x.astype(np.float64) ** 2).mean())) if x.size else 0.0
