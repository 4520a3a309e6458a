"""Semantic IDs by residual k-means (RQ-KMeans, GPR 2.1 and Tab. 1).

Dims: n rows, d embedding width, L levels, V codes of a level.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from gpr_rl.checks import check_at_least
from gpr_rl.tokenizers.base import Embeddings, Tokenizer, read_embeddings
from gpr_rl.tokenizers.fitting.search import (
    check_rows,
    encode_residual,
    kmeans,
    nearest,
    one_thread,
    sum_centroids,
)

_RESEED_ROUNDS = 10


class RQKMeans(Tokenizer):
    """Level by level k-means on what the levels before left over (GPR 2.1).

    A row is coded greedily: its nearest centroid, then the nearest one to the residual, and so on.
    Codes of a prefix cluster rows that are alike, coarse to fine. FAISS fits on one thread in
    float32: the same rows and seed give the same bits. A centroid that no row of the fit is nearest
    to moves to the row that its level fits worst.

    Attributes:
        codebooks: float32 [V, d] per level, after `fit`.
        num_reseeded: How often a centroid was moved that way, per level.
        num_unused: Codes per level that no row has: fewer distinct rows than codes.
    """

    facts: ClassVar = ("num_reseeded", "num_unused")

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

        L levels have `num_codes` each, or one number per level; level l (from 0) uses seed + l.
        k-means runs `num_iterations` per level, on at most `max_rows_per_code` rows per code.

        Raises:
            ValueError: A number out of range.
        """
        super().__init__(num_levels, num_codes, seed)
        check_at_least(1, num_iterations=num_iterations, max_rows_per_code=max_rows_per_code)
        self.num_iterations = num_iterations
        self.max_rows_per_code = max_rows_per_code
        self.codebooks: list[Tensor] = []
        self.num_reseeded: list[int] = []
        self.num_unused: list[int] = []

    def fit(self, x: Embeddings) -> "RQKMeans":
        """Learn the codebooks from rows [n, d] and return self.

        Raises:
            ValueError: Fewer rows than codes of a level, or a row with NaN or infinity.
        """
        x = read_embeddings(x)
        check_rows(x, self.num_codes)
        residual = x.clone()
        self.codebooks, self.num_reseeded, self.num_unused = [], [], []
        with one_thread():
            for level, num_codes in enumerate(self.num_codes):
                centroids = self._fit_level(residual, num_codes, self.seed + level)
                residual -= centroids[nearest(residual, centroids)]
                self.codebooks.append(centroids)
        return self

    def _fit_level(self, rows: Tensor, num_codes: int, seed: int) -> Tensor:
        centroids = kmeans(
            rows,
            num_codes,
            seed,
            num_iterations=self.num_iterations,
            max_rows_per_code=self.max_rows_per_code,
        )
        num_reseeded = 0
        for _ in range(_RESEED_ROUNDS):
            code = nearest(rows, centroids)
            empty = (torch.bincount(code, minlength=num_codes) == 0).nonzero()[:, 0]
            worst = _worst_rows(rows, centroids[code], len(empty))
            if not len(worst):
                break
            centroids[empty[: len(worst)]] = rows[worst]
            num_reseeded += len(worst)
        self.num_reseeded.append(num_reseeded)
        self.num_unused.append(num_codes - len(nearest(rows, centroids).unique()))
        return centroids

    @property
    def width(self) -> int:
        """The d of `fit`; 0: not fitted."""
        return self.codebooks[0].shape[1] if self.codebooks else 0

    def _encode(self, x: Tensor) -> Tensor:
        return encode_residual(x, self.codebooks)

    def _decode(self, codes: Tensor) -> Tensor:
        return sum_centroids(codes, self.codebooks)

    def _tensors(self) -> dict[str, Tensor]:
        return {f"codebook_{level}": book for level, book in enumerate(self.codebooks)}

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        self.codebooks = [tensors[f"codebook_{level}"] for level in range(self.num_levels)]


def _worst_rows(rows: Tensor, centroid: Tensor, count: int) -> Tensor:
    """Return up to `count` rows that differ from each other, the farthest from any centroid."""
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=rows.device)
    distance = (rows - centroid).square().sum(1)
    away = (distance > 1e-6 * rows.square().sum(1)).nonzero()[:, 0]  # rounding is no distance
    _, first = np.unique(rows[away].cpu().numpy(), axis=0, return_index=True)
    candidates = away[torch.from_numpy(np.sort(first)).to(away.device)]
    return candidates[distance[candidates].argsort(descending=True, stable=True)][:count]
