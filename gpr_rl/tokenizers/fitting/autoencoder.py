"""The residual-quantised autoencoder that RQ-VAE and RQ-KMeans+ train (GPR 2.1).

Dims: n rows, d embedding width, z latent width, L levels, V codes of a level.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gpr_rl.tokenizers.fitting.search import BLOCK, encode_residual


class ResidualAutoencoder(nn.Module):
    """Encoder, L codebooks [V, z], decoder, for embeddings divided by `scale`, a power of two."""

    scale: Tensor

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, codebooks: Sequence[Tensor], scale: Tensor
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.codebooks = nn.ParameterList([book.detach().clone() for book in codebooks])
        self.register_buffer("scale", scale)

    def loss(self, x: Float[Tensor, "n d"], commitment: float) -> Tensor:
        """Return, for embeddings in units of `scale`, the mean over rows of
        |x - x_hat|^2 + sum_l ( |sg[r_l] - e_l|^2 + commitment |r_l - sg[e_l]|^2 ).

        The decoder's gradient goes straight through the codes to the encoder. Residuals are taken
        with sg[e], so a level's codebook is moved by its own term only.
        """  # noqa: D205
        latent = self.encoder(x)
        residual, total = latent, torch.zeros_like(latent)
        terms = x.new_zeros(len(x))
        for codebook in self.codebooks:
            with torch.no_grad():
                code = torch.cdist(residual, codebook).argmin(1)
            centroid = codebook[code]
            terms = terms + (residual.detach() - centroid).square().sum(1)
            terms = terms + commitment * (residual - centroid.detach()).square().sum(1)
            total = total + centroid.detach()
            residual = residual - centroid.detach()
        x_hat = self.decoder(latent + (total - latent).detach())
        return (terms + (x - x_hat).square().sum(1)).mean()

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "n d"]) -> Int[Tensor, "n L"]:
        """Return the codes int64 [n, L]; a row's never depend on the others (`rowwise`)."""
        return encode_residual(rowwise(self.encoder, x / self.scale), list(self.codebooks))

    @torch.no_grad()
    def decode(self, latent: Float[Tensor, "n z"]) -> Float[Tensor, "n d"]:
        """Return the embeddings float32 of quantised latents."""
        return rowwise(self.decoder, latent) * self.scale


def rowwise(network: nn.Module, x: Tensor) -> Tensor:
    """Return the network's output computed in float64, so that rounding to float32 decides."""
    weights = {name: value.double() for name, value in network.state_dict().items()}
    parts = [torch.func.functional_call(network, weights, part.double()) for part in x.split(BLOCK)]
    return torch.cat(parts).float()


def power_of_two(x: Tensor) -> Tensor:
    """Return the power of two nearest to the root mean square of x, float32 []; 1 for zeros."""
    size = x.double().square().mean().sqrt()
    return torch.where(size > 0, torch.exp2(torch.log2(size).round()), 1.0).float()


def mlp(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Return a network with one hidden layer."""
    return nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, out_dim))


class ResidualMLP(nn.Module):
    """x + MLP(x), which starts as x itself: the last layer is zero (RQ-KMeans+)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.mlp = mlp(dim, hidden_dim, dim)
        last = self.mlp[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return float32 [n, d]."""
        return x + self.mlp(x)


def train(
    module: nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    order: Callable[[], Tensor],
    *,
    num_epochs: int,
    batch_size: int,
    learning_rate: float,
) -> list[float]:
    """Train in place with Adam and return the mean loss of every epoch.

    `order` gives the rows of an epoch, `loss_of` the mean loss of a batch of them.

    Raises:
        ValueError: The loss is no longer finite; it names the epoch.
    """
    optimizer = torch.optim.Adam(module.parameters(), lr=learning_rate)
    losses = []
    for epoch in range(num_epochs):
        total, rows = 0.0, order()
        for batch in rows.split(batch_size):
            loss = loss_of(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(batch)
        losses.append(total / len(rows))
        if not math.isfinite(losses[-1]):
            raise ValueError(f"the loss is {losses[-1]} in epoch {epoch}: lower the learning rate")
    return losses
