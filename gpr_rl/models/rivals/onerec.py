"""OneRec-style encoder-decoder over semantic IDs (Deng et al. 2025), as a baseline of GPR Tab. 2.

Dims: B windows or requests, T tokens, R rows (predictions), W prefixes, L levels, V codes, D width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from gpr_rl.decoding import CodeTrie, beam_search
from gpr_rl.models.config import HHDConfig
from gpr_rl.models.decoder import CodeDecoder, DecoderState
from gpr_rl.models.hsd import TokenEmbedding
from gpr_rl.models.retrieval import NextAdBatch
from gpr_rl.models.rivals.parts import RivalConfig, last_position, path_loss, transformer_blocks
from gpr_rl.schema import InputSpec, Tokens


@dataclass(frozen=True, kw_only=True)
class OneRecConfig(RivalConfig):
    """Sizes of `OneRec`; GPR gives none of its OneRec baseline. The decoder has no dropout."""

    num_encoder_layers: int = 2
    """Blocks of the encoder. Not given; as many as the HSD has."""
    num_decoder_layers: int = 1
    """Blocks of the decoder. Not given; as many as the PTD has."""
    ffn_multiple: int = 2
    """Hidden width of feed-forward networks in units of `dim`. Not given; as in `HHDConfig`."""
    max_rows: int = 128
    """Predictions whose pasts are encoded at a time in training; bounds memory."""


class OneRec(nn.Module):
    """Encodes all that lies before a request both ways, then decodes the ad's path code by code.

    A two-way encoder mixes what is later into what is earlier, so each supervised position of a
    window is a row of its own, cut off behind its E token: nothing of one prediction enters
    another. This costs one run of the encoder per prediction; token embeddings are shared.

    It is a `gpr_rl.decoding.policy.Policy` over `Tokens`, with value 0. Probabilities are over
    all V codes; illegal ones leave in the beam search, as in the original.

    Differs from OneRec: one item per request in place of a session; dense feed-forward networks
    in place of a mixture of experts; the tokens of GPR 2.1, at learned positions that count
    backwards from the request; the decoder's start token is told the E token's state, as in the
    HHD (`CodeDecoder`); no preference alignment.
    """

    def __init__(self, config: OneRecConfig, spec: InputSpec, trie: CodeTrie) -> None:
        super().__init__()
        self.trie, self.max_rows = trie, config.max_rows
        self.embedding = TokenEmbedding(config.dim, spec)
        self.position = nn.Parameter(torch.randn(spec.max_tokens, config.dim) * config.dim**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = transformer_blocks(config, config.num_encoder_layers)
        self.norm = nn.LayerNorm(config.dim)
        self.decoder = CodeDecoder(
            HHDConfig(dim=config.dim, num_heads=config.num_heads, ffn_multiple=config.ffn_multiple),
            num_layers=config.num_decoder_layers,
            num_shared=1,
            num_levels=spec.num_levels - 1,
            num_codes=spec.num_codes,
        )
        shape = (spec.num_levels, spec.num_codes, config.dim)
        self.output = nn.Parameter(torch.randn(shape) * 0.1 * config.dim**-0.5)

    def begin_rows(
        self, x: Float[Tensor, "B T D"], row: Int[Tensor, " R"], position: Int[Tensor, " R"]
    ) -> DecoderState:
        """Return the decoder's view of R predictions, at E token `position` of embedded `row`."""
        index = torch.arange(int(position.max()) + 1, device=x.device)
        distance = position[:, None] - index  # [R, t]
        h = x[:, : len(index)].index_select(0, row) + self.position[distance.clamp_min(0)]
        h = self.dropout(h)
        for block in self.encoder:
            h = block(h, distance >= 0)
        return self.decoder.begin(self.norm(h), position[:, None])

    def loss(self, batch: NextAdBatch) -> Float[Tensor, ""]:
        """Return -log p(path) of the next ad, unmasked; see `Retriever.loss`."""
        x = self.embedding.padded(batch.tokens)

        def total(row: Tensor, position: Tensor, path: Tensor) -> Tensor:
            state = self.begin_rows(x, row, position)
            hidden = self.decoder.candidates(state, path[:, None, None, :-1])[:, 0, 0]
            hidden = torch.cat([state.start, hidden], dim=1)
            logits = torch.einsum("rld,lvd->rlv", hidden, self.output)
            return F.cross_entropy(logits.flatten(0, 1), path.flatten(), reduction="sum")

        return path_loss(batch, total, self.max_rows, x)

    def encode(self, request: Tokens) -> DecoderState:
        """Return what the decoder sees of B requests."""
        row = torch.arange(len(request), device=request.kind.device)
        return self.begin_rows(self.embedding.padded(request), row, last_position(request)[:, 0])

    def step(
        self, context: DecoderState, prefix: Int[Tensor, "B W l"]
    ) -> tuple[Float[Tensor, "B W V"], Float[Tensor, "B W"]]:
        """Return log-probabilities of the next code, unmasked, and zeros for values."""
        width, level = prefix.shape[1:]
        hidden = context.start.expand(-1, width, -1)
        if level:
            hidden = self.decoder.candidates(context, prefix[:, None])[:, 0, :, -1]
        log_prob = (hidden @ self.output[level].T).log_softmax(-1)
        return log_prob, log_prob.new_zeros(prefix.shape[:2])

    @torch.no_grad()
    def rank(self, tokens: Tokens, item: Int[Tensor, "B T"], k: int) -> Int[Tensor, "B k"]:
        """Return the ads of the k paths that a beam of width k finds; see `Retriever.rank`."""
        return beam_search(self, tokens, self.trie, k).ad_id
