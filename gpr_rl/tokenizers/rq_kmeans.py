"""Semantic IDs by residual k-means (RQ-KMeans, GPR 2.1 and Tab. 1).

Dims: n rows, d embedding width, L levels, V codes of a level.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from torch import Tensor

from gpr_rl.tokenizers.base import (
    load_tokenizer,
    read_codes,
    read_embeddings,
    read_num_codes,
    save_tokenizer,
)

SEARCH_BLOCK = 256
"""Rows per nearest-centroid search, always this many: a shorter last block is padded."""

_RESEED_ROUNDS = 10


class RQKMeans:
    """Level by level k-means on what the levels before left over (METHODS 2).

    A row is coded greedily: its nearest centroid, then the nearest one to the residual, and so on.
    Codes of a prefix cluster rows that are alike, coarse to fine.

    FAISS fits and searches on one thread in float32: the same rows and seed give the same bits.
    A centroid that no row of the fit is nearest to moves to the row that its level fits worst.

    Attributes:
        codebooks: float32 [V, d] per level, after `fit`.
        num_reseeded: How often a centroid was moved that way, per level.
        num_unused: Codes per level that still no row of the fit has: fewer distinct rows than
            codes.
    """

    def __init__(
        self,
        num_levels: int = 3,
        num_codes: int | Sequence[int] = 256,
        seed: int = 0,
        *,
        num_iterations: int = 25,
        max_rows_per_code: int = 256,
    ) -> None:
        """Configure; `fit` does the work.

        Args:
            num_levels: L.
            num_codes: V, one for all levels or one per level.
            seed: Of the k-means; level l (from 0) uses seed + l.
            num_iterations: k-means iterations per level.
            max_rows_per_code: FAISS draws at most this many rows per code for its iterations.

        Raises:
            ValueError: A count below 1, or `num_codes` of another length than `num_levels`.
        """
        self.num_codes = read_num_codes(num_codes, num_levels)
        self.num_levels = num_levels
        self.seed = seed
        if num_iterations < 1 or max_rows_per_code < 1:
            raise ValueError(
                "num_iterations and max_rows_per_code must be at least 1, got"
                f" {num_iterations} and {max_rows_per_code}"
            )
        self.num_iterations = num_iterations
        self.max_rows_per_code = max_rows_per_code
        self.codebooks: list[Tensor] = []
        self.num_reseeded: list[int] = []
        self.num_unused: list[int] = []

    def fit(self, x: ArrayLike | Tensor) -> "RQKMeans":
        """Learn the codebooks and return self.

        Args:
            x: Float array or tensor [n, d].

        Raises:
            ValueError: Fewer rows than codes of a level, or a row with NaN or infinity.
        """
        x = read_embeddings(x)
        if len(x) < max(self.num_codes):
            raise ValueError(
                f"k-means needs at least as many rows as codes: got {len(x)} rows for"
                f" {max(self.num_codes)} codes"
            )
        residual = x.cpu().numpy().copy()
        self.codebooks, self.num_reseeded, self.num_unused = [], [], []
        with _one_thread():
            for level, num_codes in enumerate(self.num_codes):
                centroids = self._fit_level(residual, num_codes, self.seed + level)
                residual -= centroids[_nearest(residual, centroids)[0]]
                self.codebooks.append(torch.from_numpy(centroids).to(x.device))
        return self

    def _fit_level(self, rows: np.ndarray, num_codes: int, seed: int) -> np.ndarray:
        kmeans = faiss.Kmeans(
            rows.shape[1],
            num_codes,
            niter=self.num_iterations,
            seed=seed,
            min_points_per_centroid=1,
            max_points_per_centroid=self.max_rows_per_code,
        )
        kmeans.train(rows)
        centroids = np.array(kmeans.centroids, dtype=np.float32).reshape(num_codes, -1)
        num_reseeded = 0
        for _ in range(_RESEED_ROUNDS):
            code, distance = _nearest(rows, centroids)
            empty = np.flatnonzero(np.bincount(code, minlength=num_codes) == 0)
            worst = _worst_rows(rows, distance, len(empty))
            if not len(worst):
                break
            centroids[empty[: len(worst)]] = rows[worst]
            num_reseeded += len(worst)
        used = np.unique(_nearest(rows, centroids)[0])
        self.num_reseeded.append(num_reseeded)
        self.num_unused.append(num_codes - len(used))
        return centroids

    def encode(self, x: ArrayLike | Tensor) -> Int[Tensor, "n L"]:
        """Return the codes int64 of rows [n, d]; a row's codes never depend on the others.

        Raises:
            ValueError: Not fitted, another width than at fit, or a row with NaN or infinity.
        """
        codebooks = self._fitted()
        x = read_embeddings(x, width=codebooks[0].shape[1])
        residual = x.cpu().numpy().copy()
        codes = []
        with _one_thread():
            for codebook in codebooks:
                centroids = codebook.cpu().numpy()
                code = _nearest(residual, centroids)[0]
                residual -= centroids[code]
                codes.append(torch.from_numpy(code))
        return torch.stack(codes, dim=1).to(x.device)

    def decode(self, codes: ArrayLike | Tensor) -> Float[Tensor, "n d"]:
        """Return the float32 embeddings that codes [n, L] stand for: the sum of their centroids.

        Raises:
            ValueError: Not fitted, codes of another shape, or one out of range.
        """
        codebooks = self._fitted()
        codes = read_codes(codes, self.num_codes)
        x_hat = codebooks[0][codes[:, 0]]
        for level in range(1, self.num_levels):
            x_hat = x_hat + codebooks[level][codes[:, level]]
        return x_hat

    def save(self, directory: str | Path) -> None:
        """Write the codebooks and settings to `directory`, replacing what `save` left there."""
        tensors = {f"codebook_{level}": book for level, book in enumerate(self._fitted())}
        config = {
            "num_levels": self.num_levels,
            "num_codes": list(self.num_codes),
            "seed": self.seed,
            "num_iterations": self.num_iterations,
            "max_rows_per_code": self.max_rows_per_code,
        }
        fitted = {"num_reseeded": self.num_reseeded, "num_unused": self.num_unused}
        save_tokenizer(directory, type(self).__name__, {**config, "fitted": fitted}, tensors)

    @classmethod
    def load(cls, directory: str | Path) -> "RQKMeans":
        """Return the tokenizer that `save` wrote to `directory`.

        Raises:
            FileNotFoundError: No tokenizer there.
            ValueError: Its files are damaged or another tokenizer's.
        """
        config, tensors = load_tokenizer(directory, cls.__name__)
        try:
            fitted = config.pop("fitted")
            tokenizer = cls(**config)
            tokenizer.codebooks = [tensors[f"codebook_{i}"] for i in range(tokenizer.num_levels)]
            tokenizer.num_reseeded = fitted["num_reseeded"]
            tokenizer.num_unused = fitted["num_unused"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"the tokenizer in {directory} is damaged: {error!r}") from error
        return tokenizer

    def _fitted(self) -> list[Tensor]:
        if not self.codebooks:
            raise ValueError(f"this {type(self).__name__} is not fitted: call fit or load first")
        return self.codebooks


def _nearest(rows: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's nearest centroid (int64) and squared distance, ties to the lower code."""
    index = faiss.IndexFlatL2(rows.shape[1])
    index.add(centroids)
    code = np.empty(len(rows), dtype=np.int64)
    distance = np.empty(len(rows), dtype=np.float32)
    block = np.zeros((SEARCH_BLOCK, rows.shape[1]), dtype=np.float32)
    for start in range(0, len(rows), SEARCH_BLOCK):
        here = rows[start : start + SEARCH_BLOCK]
        block[: len(here)] = here
        with _row_by_row():
            found, which = index.search(block, 1)
        code[start : start + len(here)] = which[: len(here), 0]
        distance[start : start + len(here)] = found[: len(here), 0]
    return code, distance


def _worst_rows(rows: np.ndarray, distance: np.ndarray, count: int) -> np.ndarray:
    """Return up to `count` rows that differ from each other, the farthest from any centroid."""
    away = np.flatnonzero(distance > 1e-6 * np.square(rows).sum(1))  # rounding is no distance
    _, first = np.unique(rows[away], axis=0, return_index=True)
    candidates = away[np.sort(first)]
    return candidates[np.argsort(-distance[candidates], kind="stable")][:count]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run FAISS on one thread, so that sums add up in one order, and restore the setting."""
    num_threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(num_threads)


@contextmanager
def _row_by_row() -> Iterator[None]:
    """Let FAISS search without matrix products and restore the setting.

    A matrix product rounds a row by where it lies in its block, which tips the codes of rows
    that lie between two centroids.
    """
    threshold = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = np.iinfo(np.int32).max
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = threshold
