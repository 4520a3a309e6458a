"""HSTU: a decoder with pointwise attention over all tokens (Zhai et al. 2024).

Dims: B windows or requests, T tokens, P supervised positions, N ads, D width, H heads.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpr_rl.models.hsd import TokenEmbedding
from gpr_rl.models.masks import NUM_TIME_BUCKETS, time_bucket, token_time
from gpr_rl.models.rivals.parts import AdScorer, RivalConfig, last_position
from gpr_rl.schema import InputSpec, Tokens

_INIT_STD = 0.02
_EPS = 1e-6  # the authors'


@dataclass(frozen=True, kw_only=True)
class HSTUConfig(RivalConfig):
    """Sizes of `HSTU`. Zhai et al.: dim 50 to 256, 1 to 8 heads, dropout 0.2 on public data."""

    num_layers: int = 2
    """Blocks. Zhai et al.: 2 to 16; here as in `HHDConfig`."""
    query_chunk: int = 256
    """Queries that attend at a time; bounds memory and changes no result."""


class HSTUBlock(nn.Module):
    """Gated pointwise attention with a residual; no feed-forward network.

    [U, V, Q, K] = split(SiLU(Linear(norm(X)))); A = SiLU(Q K^T + bias) / n over keys j <= i;
    X + Linear(norm(A V) * U) (Zhai et al., Eqs. 1 to 3).

    The bias is learned per distance and per log2 bucket of elapsed time, and shared by the heads as
    in the authors' code. n is the number of tokens that the query sees. Theirs is the padded
    length, which the norm that follows undoes but for its epsilon.
    """

    def __init__(self, config: HSTUConfig, max_tokens: int) -> None:
        super().__init__()
        self.num_heads, self.query_chunk = config.num_heads, config.query_chunk
        self.norm = nn.LayerNorm(config.dim, eps=_EPS)
        self.uvqk = nn.Linear(config.dim, 4 * config.dim)
        self.position_bias = nn.Parameter(torch.randn(max_tokens) * _INIT_STD)
        self.time_bias = nn.Parameter(torch.randn(NUM_TIME_BUCKETS) * _INIT_STD)
        self.attended_norm = nn.LayerNorm(config.dim, eps=_EPS)
        self.output = nn.Linear(config.dim, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Float[Tensor, "B T D"], time: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T D"]:
        """Transform tokens at the given times, in seconds."""
        gate, *vqk = F.silu(self.uvqk(self.norm(x))).chunk(4, dim=-1)
        value, query, key = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in vqk
        )
        attended = self.attend(query, key, value, time).transpose(1, 2).flatten(2)
        return x + self.output(self.dropout(self.attended_norm(attended) * gate))

    def attend(
        self,
        query: Float[Tensor, "B H T d"],
        key: Float[Tensor, "B H T d"],
        value: Float[Tensor, "B H T d"],
        time: Int[Tensor, "B T"],
    ) -> Float[Tensor, "B H T d"]:
        """Return A V. Neither forward nor backward holds scores of more than one chunk."""
        if time.shape[1] <= self.query_chunk:
            return self._attend_chunk(query, key, value, time)
        parts = []
        for start in range(0, time.shape[1], self.query_chunk):
            stop = start + self.query_chunk
            inputs = query[:, :, start:stop], key[:, :, :stop], value[:, :, :stop], time[:, :stop]
            part = checkpoint(
                self._attend_chunk, *inputs, use_reentrant=False, preserve_rng_state=False
            )
            parts.append(part)
        return torch.cat(parts, dim=2)

    def _attend_chunk(self, query: Tensor, key: Tensor, value: Tensor, time: Tensor) -> Tensor:
        """Attend from the last q of s tokens to all s: query [B, H, q, d], key [B, H, s, d]."""
        first = key.shape[2] - query.shape[2]
        index = torch.arange(key.shape[2], device=key.device)
        distance = index[first:, None] - index  # [q, s]
        elapsed = time[:, first:, None] - time[:, None]  # [B, q, s]
        bias = _look_up(self.time_bias, time_bucket(elapsed))
        bias = bias + _look_up(self.position_bias, distance.clamp_min(0))
        weight = F.silu((query @ key.mT).add_(bias[:, None])).masked_fill(distance < 0, 0.0)
        return (weight @ value) / (index[first:, None] + 1)


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    """Return table[index] for numbers; backward is many times as fast as that of `F.embedding`."""
    return table.index_select(0, index.flatten()).view(index.shape)


class HSTU(AdScorer):
    """Predicts the next of N ads at an E token from all tokens before it.

    Differs from Zhai et al.: tokens are those of GPR 2.1, known by codes and not by item ids;
    a score is a plain dot product with an ad's own embedding, trained by cross-entropy over all
    ads in place of sampled ones; a layer norm follows the last block.
    """

    def __init__(self, config: HSTUConfig, spec: InputSpec, num_ads: int) -> None:
        super().__init__()
        self.embedding = TokenEmbedding(config.dim, spec)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            HSTUBlock(config, spec.max_tokens) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.ads = nn.Parameter(torch.randn(num_ads, config.dim) * _INIT_STD)

    def states(
        self, tokens: Tokens, item: Int[Tensor, "B T"], position: Int[Tensor, "B P"]
    ) -> Float[Tensor, "B P D"]:
        """Return the outputs at `position`, indices of E tokens; items are known by their codes."""
        x = self.embedding.padded(tokens)
        num_tokens = int(last_position(tokens).max()) + 1
        x, time = self.dropout(x[:, :num_tokens]), token_time(tokens.time_gap)[:, :num_tokens]
        for block in self.blocks:
            x = block(x, time)
        return self.norm(x.take_along_dim(position[..., None], dim=1))
