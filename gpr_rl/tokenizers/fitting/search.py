"""Nearest centroids whose answer never depends on the other rows, at the speed of matrix products.

A matrix product rounds a row by where it lies in its block, which tips the codes of rows that lie
between two centroids. So the product only filters: a row whose best centroid leads by more than
any rounding could make up is decided; the few others are compared in float64, row by row.

Dims: n rows, d width, V centroids (codes of a level), L levels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import faiss
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 1_024
"""Rows per matrix product."""
_EXACT_ELEMENTS = 1 << 22


class Nearest:
    """argmin_k |row - centroid_k|^2 + offset_k for blocks of rows, ties to the lower code."""

    def __init__(
        self, centroids: Float[Tensor, "V d"], offset: Float[Tensor, " V"] | None = None
    ) -> None:
        """Prepare a search; `offset` is added to the squared distances, None: 0."""
        self._centroids, self._offset = centroids, offset
        self._middle = centroids.mean(0)  # far from the origin, products would leave no digits
        shifted = centroids - self._middle
        self._constant = shifted.square().sum(1)
        self._bound = 2 * (centroids.shape[1] + 12) * torch.finfo(torch.float32).eps
        self._length = shifted.norm(dim=1).max()
        self._extra = centroids.new_zeros(())
        if offset is not None:
            self._constant = self._constant + offset
            self._extra = self._bound * offset.abs().max()
        self._table = (-2 * shifted).T.contiguous()
        # used again for every block: fresh memory of this size costs more than what is put there
        self._moved = centroids.new_empty(BLOCK, centroids.shape[1])
        self._score = centroids.new_empty(BLOCK, len(centroids))

    def __call__(self, rows: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """Return int64 [n] for one block of at most `BLOCK` rows float32 [n, d]."""
        moved = torch.sub(rows, self._middle, out=self._moved[: len(rows)])
        score = torch.addmm(self._constant, moved, self._table, out=self._score[: len(rows)])
        if score.device.type == "cpu":  # numpy's takes a tenth of the time of torch's
            first = torch.from_numpy(score.numpy().argmin(1))[:, None]
        else:
            first = score.argmin(1)[:, None]
        best = score.gather(1, first)[:, 0]
        second = score.scatter_(1, first, torch.inf).amin(1)
        code = first[:, 0]
        size = torch.linalg.vector_norm(moved, dim=1) + self._length
        close = second - best <= self._bound * size.square_() + self._extra
        if close.any():
            code[close] = _exact(rows[close], self._centroids, self._offset)
        return code


def nearest(
    rows: Float[Tensor, "n d"],
    centroids: Float[Tensor, "V d"],
    offset: Float[Tensor, " V"] | None = None,
) -> Int[Tensor, " n"]:
    """Return `Nearest` of any number of rows, int64 [n]."""
    return encode_residual(rows, [centroids], [offset])[:, 0]


def _exact(rows: Tensor, centroids: Tensor, offset: Tensor | None) -> Tensor:
    """Compare in float64, one reduction per row and centroid."""
    size = max(1, _EXACT_ELEMENTS // centroids.numel())
    codes = []
    for part in rows.double().split(size):
        score = (part[:, None] - centroids.double()).square_().sum(-1)
        codes.append((score if offset is None else score + offset.double()).argmin(1))
    return torch.cat(codes)


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply in float32 even where the user allowed less; restore the setting."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run FAISS and torch on one thread, so that sums add up in one order; restore the setting."""
    faiss_threads, torch_threads = faiss.omp_get_max_threads(), torch.get_num_threads()
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(faiss_threads)
        torch.set_num_threads(torch_threads)


def kmeans(
    rows: Float[Tensor, "n d"],
    num_codes: int,
    seed: int,
    *,
    num_iterations: int = 25,
    max_rows_per_code: int = 256,
) -> Float[Tensor, "V d"]:
    """Return the centroids that FAISS's k-means finds, float32 [num_codes, d]."""
    clustering = faiss.Kmeans(
        rows.shape[1],
        num_codes,
        niter=num_iterations,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=max_rows_per_code,
    )
    clustering.train(rows.cpu().numpy())
    centroids = np.array(clustering.centroids, dtype=np.float32).reshape(num_codes, -1)
    return torch.from_numpy(centroids).to(rows.device)


def check_rows(x: Float[Tensor, "n d"], num_codes: Sequence[int]) -> None:
    """Raise a ValueError where k-means has fewer rows than codes of a level."""
    if len(x) < max(num_codes):
        raise ValueError(
            f"k-means needs at least as many rows as codes: got {len(x)} rows for"
            f" {max(num_codes)} codes; choose a smaller num_codes"
        )


def encode_residual(
    x: Float[Tensor, "n d"],
    codebooks: Sequence[Tensor],
    offsets: Sequence[Tensor | None] | None = None,
) -> Int[Tensor, "n L"]:
    """Return the code of every level, int64 [n, L], of rows float32 [n, d].

    Codebooks are float32 [V, d], offsets float32 [V] (`search.nearest`), each per level.
    """
    searches = list(map(Nearest, codebooks, offsets or [None] * len(codebooks)))
    codes = torch.empty(len(x), len(codebooks), dtype=torch.int64, device=x.device)
    with full_precision():
        for start in range(0, len(x), BLOCK):  # all levels of a block while it is in the cache
            residual = x[start : start + BLOCK].clone()
            for level, codebook in enumerate(codebooks):
                code = searches[level](residual)
                codes[start : start + BLOCK, level] = code
                if level + 1 < len(codebooks):
                    residual -= codebook.index_select(0, code)
    return codes


def sum_centroids(codes: Int[Tensor, "n L"], codebooks: Sequence[Tensor]) -> Float[Tensor, "n d"]:
    """Return the sum of each row's centroids, added up from level 1 on."""
    x_hat = codebooks[0][codes[:, 0]]
    for level in range(1, len(codebooks)):
        x_hat = x_hat + codebooks[level][codes[:, level]]
    return x_hat
