"""Semantic IDs by a residual-quantised autoencoder (RQ-VAE, GPR Tab. 1).

Dims: n rows, d embedding width, L levels, V codes of a level.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from gpr_rl.checks import check_at_least, check_positive
from gpr_rl.tokenizers.base import Embeddings, Tokenizer, read_embeddings
from gpr_rl.tokenizers.fitting.autoencoder import (
    ResidualAutoencoder,
    mlp,
    power_of_two,
    train,
)
from gpr_rl.tokenizers.fitting.search import one_thread, sum_centroids


class RQVAE(Tokenizer):
    """An autoencoder whose latent is coded level by level, with codebooks that start at random.

    Attributes:
        losses: Mean training loss per epoch, in units of `ResidualAutoencoder.scale`.
        num_unused: Codes per level that no row of the fit has.
    """

    _model: ResidualAutoencoder
    width: int = 0
    facts: ClassVar = ("width", "losses", "num_unused")

    def __init__(
        self,
        num_levels: int = 3,
        num_codes: int | Sequence[int] = 256,
        seed: int = 0,
        *,
        hidden_dim: int = 128,
        latent_dim: int = 32,
        num_epochs: int = 100,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        commitment: float = 0.25,
    ) -> None:
        """Configure; `fit` does the work.

        L levels have `num_codes` each, or one number per level. Encoder and decoder have one hidden
        layer of `hidden_dim`; latent and codebooks are `latent_dim` wide. Adam takes `num_epochs`
        passes over the rows, `batch_size` of them a step, in an order of `seed`. `commitment` is
        beta, 0.25 here; the paper gives none (`docs/decisions.md`).

        Raises:
            ValueError: A number out of range.
        """
        super().__init__(num_levels, num_codes, seed)
        self.hidden_dim, self.latent_dim = hidden_dim, latent_dim
        self.num_epochs, self.batch_size = num_epochs, batch_size
        self.learning_rate, self.commitment = learning_rate, commitment
        check_at_least(1, hidden_dim=hidden_dim, latent_dim=latent_dim, batch_size=batch_size)
        check_at_least(0, num_epochs=num_epochs, commitment=commitment)
        check_positive(learning_rate=learning_rate)
        self.losses: list[float] = []
        self.num_unused: list[int] = []

    def fit(self, x: Embeddings) -> "RQVAE":
        """Train encoder, codebooks and decoder on rows [n, d], n >= 1, and return self.

        Runs on one thread: the same rows and seed give the same bits.

        Raises:
            ValueError: Too few rows, a row with NaN or infinity, or a loss that diverges.
        """
        x = read_embeddings(x)
        scale = power_of_two(x)
        with one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            scaled, generator = x / scale, torch.Generator().manual_seed(self.seed)
            model = self._start(scaled, scale).to(x.device)
            self.losses = train(
                model,
                lambda rows: model.loss(scaled[rows], self.commitment),
                lambda: torch.randperm(len(x), generator=generator).to(x.device),
                num_epochs=self.num_epochs,
                batch_size=self.batch_size,
                learning_rate=self.learning_rate,
            )
        self.width, self._model = x.shape[1], model.requires_grad_(False)
        self.num_unused = [
            size - len(column.unique())
            for size, column in zip(self.num_codes, self.encode(x).T, strict=True)
        ]
        return self

    def _start(self, x: Tensor, scale: Tensor) -> ResidualAutoencoder:
        """Return the model before training: random codebooks with the spread of the latents."""
        if len(x) == 0:
            raise ValueError("an autoencoder needs at least one row, got none")
        encoder, decoder = self._networks(x.shape[1])
        with torch.no_grad():
            latent = encoder.to(x.device)(x).cpu()
        spread = latent.std(0, correction=0)
        books = [torch.randn(size, len(spread)) * spread for size in self.num_codes]
        return ResidualAutoencoder(encoder, decoder, books, scale)

    def _networks(self, width: int) -> tuple[nn.Module, nn.Module]:
        """Return encoder and decoder, drawn from torch's generator."""
        encoder = mlp(width, self.hidden_dim, self.latent_dim)
        return encoder, mlp(self.latent_dim, self.hidden_dim, width)

    def _encode(self, x: Tensor) -> Tensor:
        return self._model.encode(x)

    def _decode(self, codes: Tensor) -> Tensor:
        return self._model.decode(sum_centroids(codes, list(self._model.codebooks)))

    def _tensors(self) -> dict[str, Tensor]:
        return self._model.state_dict()

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        books = [tensors[f"codebooks.{level}"] for level in range(self.num_levels)]
        model = ResidualAutoencoder(*self._networks(self.width), books, tensors["scale"])
        model.load_state_dict(tensors)
        self._model = model.requires_grad_(False)
