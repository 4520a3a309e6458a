"""The eCPM token: one more prediction after the path (GR4AD, value-aware supervised learning).

Dims: B sequences, S states per sequence, K paths per state, L levels, V codes, D width, Q buckets.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class EcpmHead(nn.Module):
    """Predicts the eCPM bucket of a path from the decoder's last output and the last code.

    Differs from the source: the L-th code, which the decoder does not take, joins here by an
    embedding and a hidden layer, and not by one more decoder step.
    """

    edges: Tensor

    def __init__(self, dim: int, num_codes: int, num_buckets: int) -> None:
        super().__init__()
        self.last_code = nn.Embedding(num_codes, dim)
        self.mix = nn.Linear(2 * dim, dim)
        self.output = nn.Linear(dim, num_buckets)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.register_buffer("edges", torch.zeros(num_buckets - 1))

    @torch.no_grad()
    def fit_buckets(self, ecpm: Float[Tensor, " R"]) -> None:
        """Set the edges of equal-frequency buckets, from the eCPM of logged training impressions.

        Where many are equal, buckets between them stay empty.

        Raises:
            ValueError: There are no impressions.
        """
        if not len(ecpm):
            raise ValueError("the eCPM of at least one impression is needed, got none")
        share = torch.linspace(0, 1, len(self.edges) + 2, dtype=torch.float64)[1:-1]
        ordered = ecpm.double().sort().values
        place = (share * len(ordered)).long().clamp_max(len(ordered) - 1)
        self.edges.copy_(ordered[place])

    def bucket(self, ecpm: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """Return the bucket of each eCPM, int64 in [0, Q)."""
        return torch.bucketize(ecpm.contiguous(), self.edges, right=True)

    def forward(
        self, hidden: Float[Tensor, "*rows D"], last_code: Int[Tensor, "*rows"]
    ) -> Float[Tensor, "*rows Q"]:
        """Return bucket logits from the output after L - 1 codes and the L-th code."""
        joined = torch.cat([hidden, self.last_code(last_code)], dim=-1)
        return self.output(nn.functional.silu(self.mix(joined)))
