"""k-means whose clusters have about the same size, and stay so for rows not seen before.

Each centroid has a price, and a row belongs to argmin_k |row - centroid_k|^2 + price_k. With the
prices that solve the balanced assignment (an optimal transport with equal marginals), a new row is
assigned by itself. GR4AD asks for balance and does not say how.

Dims: n rows, d width, V codes.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from gpr_rl.tokenizers.fitting.search import kmeans

_NUM_ROUNDS = 10
_NUM_ITERATIONS = 20
_NUM_LAST_ITERATIONS = 60
_FIRST_TEMPERATURE, _LAST_TEMPERATURE = 0.3, 0.03
"""In units of the mean gap between a row's nearest and second-nearest centroid."""
_ROWS_PER_CODE = 64


def balanced_kmeans(
    rows: Float[Tensor, "n d"], num_codes: int, seed: int, *, num_iterations: int = 25
) -> tuple[Float[Tensor, "V d"], Float[Tensor, " V"]]:
    """Return centroids float32 [V, d] and prices float32 [V] of rows float32 [n, d], n >= V.

    Starts from FAISS's k-means. Every round finds the prices by Sinkhorn's iteration at a falling
    temperature and moves each centroid to the mean of the rows that are assigned to it; the last
    round leaves the centroids where they are. At most 64 rows per code, drawn at random, take part,
    so memory is 256 V^2 bytes.
    """
    centroids = kmeans(rows, num_codes, seed, num_iterations=num_iterations)
    price = centroids.new_zeros(num_codes)
    if num_codes == 1:
        return centroids, price
    if len(rows) > _ROWS_PER_CODE * num_codes:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(rows), generator=generator)[: _ROWS_PER_CODE * num_codes]
        rows = rows[chosen.to(rows.device)]
    fall = _LAST_TEMPERATURE / _FIRST_TEMPERATURE
    for number in range(_NUM_ROUNDS):
        scale = _FIRST_TEMPERATURE * fall ** (number / (_NUM_ROUNDS - 1))
        distance = _distances(rows, centroids)
        price = _sinkhorn(distance, price, scale, _NUM_ITERATIONS)
        code = (distance + price).argmin(1)
        size = torch.bincount(code, minlength=num_codes)
        total = torch.zeros_like(centroids).index_add(0, code, rows)
        mean = total / size.clamp_min(1)[:, None]
        centroids = torch.where((size > 0)[:, None], mean, centroids)
    distance = _distances(rows, centroids)
    return centroids, _sinkhorn(distance, price, _LAST_TEMPERATURE, _NUM_LAST_ITERATIONS)


def _distances(rows: Tensor, centroids: Tensor) -> Float[Tensor, "n V"]:
    middle = centroids.mean(0)
    return torch.cdist(rows - middle, centroids - middle).square()


def _sinkhorn(distance: Tensor, price: Tensor, scale: float, num_iterations: int) -> Tensor:
    """Return prices [V] at which the sizes, softly assigned by distances [n, V], are equal."""
    nearest = distance.topk(2, dim=1, largest=False).values
    temperature = scale * (nearest[:, 1] - nearest[:, 0]).mean()
    if temperature == 0:  # every row lies between two centroids that are the same
        return price
    equal = len(distance) / price.numel()
    for _ in range(num_iterations):
        share = torch.softmax(-(distance + price) / temperature, dim=1).sum(0)
        price = price + temperature * torch.log(share.clamp_min(1e-6) / equal)
        price = price - price.mean()
    return price
