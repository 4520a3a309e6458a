"""Semantic IDs by RQ-KMeans+ (GPR 2.1 and Tab. 1): residual k-means, refined as an autoencoder.

Dims: n rows, d embedding width, V codes of a level.
"""

from collections.abc import Sequence

from torch import Tensor

from gpr_rl.tokenizers.fitting.autoencoder import ResidualAutoencoder, ResidualMLP
from gpr_rl.tokenizers.rq_kmeans import RQKMeans
from gpr_rl.tokenizers.rq_vae import RQVAE


class RQKMeansPlus(RQVAE):
    """RQ-VAE's loss from RQ-KMeans's codebooks, with z = x + MLP(x) and the same for the decoder.

    The MLPs start at zero, so that with `num_epochs=0` codes and reconstruction are exactly those
    of `RQKMeans`, and no code starts dead.
    """

    def __init__(
        self,
        num_levels: int = 3,
        num_codes: int | Sequence[int] = 256,
        seed: int = 0,
        *,
        hidden_dim: int = 128,
        num_epochs: int = 100,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        commitment: float = 0.25,
    ) -> None:
        """Configure; `fit` does the work. See `RQVAE`; the latent is as wide as the embedding."""
        super().__init__(
            num_levels,
            num_codes,
            seed,
            hidden_dim=hidden_dim,
            num_epochs=num_epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            commitment=commitment,
        )

    def _networks(self, width: int) -> tuple[ResidualMLP, ResidualMLP]:
        return ResidualMLP(width, self.hidden_dim), ResidualMLP(width, self.hidden_dim)

    def _start(self, x: Tensor, scale: Tensor) -> ResidualAutoencoder:
        """Return the model before training: codebooks of RQ-KMeans on the same rows."""
        books = RQKMeans(self.num_levels, self.num_codes, self.seed).fit(x).codebooks
        return ResidualAutoencoder(*self._networks(x.shape[1]), books, scale)
