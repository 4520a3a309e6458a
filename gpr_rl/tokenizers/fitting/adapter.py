"""The contrastive adapter of UA-SID: items that go together come closer (GR4AD).

Dims: n rows, d embedding width, P pairs.
"""

import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from gpr_rl.tokenizers.fitting.autoencoder import ResidualMLP, power_of_two, rowwise, train

_HIDDEN_DIM = 128
_BATCH = 512


class Adapter(nn.Module):
    """x + MLP(x) in units of `scale`, float32 [], a power of two; starts as x itself."""

    scale: Tensor

    def __init__(self, width: int, scale: Tensor) -> None:
        super().__init__()
        self.network = ResidualMLP(width, _HIDDEN_DIM)
        self.register_buffer("scale", scale)

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor]) -> "Adapter":
        """Return the adapter with saved weights."""
        adapter = cls(tensors["network.mlp.0.weight"].shape[1], tensors["scale"])
        adapter.load_state_dict(tensors)
        return adapter.requires_grad_(False)

    @torch.no_grad()
    def embed(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return the adapted rows; a row's never depend on the others."""
        return rowwise(self.network, x / self.scale) * self.scale


def train_adapter(
    x: Float[Tensor, "n d"],
    pairs: ArrayLike | Tensor,
    weight: ArrayLike | Tensor,
    *,
    num_epochs: int,
    learning_rate: float,
    temperature: float,
    seed: int,
) -> tuple[Adapter, list[float]]:
    """Return an adapter trained with InfoNCE (Adam), and its mean loss per epoch.

    Pairs int [P, 2] of rows of x are drawn in proportion to their weights [P], P per epoch; within
    a batch, the partners of other pairs are the negatives, except rows that are the anchor or its
    partner again. `temperature` divides the cosine similarities.

    Raises:
        ValueError: Misshapen or empty pairs, a row out of range, or weights that are negative or
            without a positive sum; or a loss that is no longer finite.
    """
    pairs, weight = torch.as_tensor(pairs), torch.as_tensor(weight).double()
    _check_pairs(pairs, weight, len(x))
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = Adapter(x.shape[1], power_of_two(x)).to(x.device)
    scaled = x / adapter.scale

    def draw() -> Tensor:
        drawn = torch.multinomial(weight, len(pairs), replacement=True, generator=generator)
        return pairs[drawn].to(x.device)

    def loss_of(rows: Tensor) -> Tensor:
        anchor, partner = (normalize(adapter.network(scaled[r]), dim=1) for r in rows.T)
        similarity = anchor @ partner.T / temperature
        same = (rows[:, 1] == rows[:, 1:]) | (rows[:, 1] == rows[:, :1])
        same.fill_diagonal_(False)
        target = torch.arange(len(rows), device=x.device)
        return cross_entropy(similarity.masked_fill(same, -torch.inf), target)

    losses = train(
        adapter,
        loss_of,
        draw,
        num_epochs=num_epochs,
        batch_size=_BATCH,
        learning_rate=learning_rate,
    )
    return adapter.requires_grad_(False), losses


def _check_pairs(pairs: Tensor, weight: Tensor, num_rows: int) -> None:
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs) or pairs.is_floating_point():
        raise ValueError(f"pairs must be integers [P, 2], P >= 1, got {list(pairs.shape)}")
    if weight.shape != pairs.shape[:1]:
        raise ValueError(f"weights must be [{len(pairs)}], got {list(weight.shape)}")
    if pairs.min() < 0 or pairs.max() >= num_rows:
        raise ValueError(
            f"pairs must be rows in [0, {num_rows}), got {int(pairs.min())} to {int(pairs.max())}"
        )
    if not weight.isfinite().all() or weight.min() < 0 or weight.sum() == 0:
        raise ValueError("weights must be finite and not negative, with a positive sum")
