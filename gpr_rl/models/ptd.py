"""Progressive Token-wise Decoder: think, then generate the path code by code (GPR 2.2).

Dims: B sequences, S states per sequence, K candidates per state, L levels, V codes, D width,
N multi-token-prediction heads.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gpr_rl.models.checks import check_paths
from gpr_rl.models.config import HHDConfig
from gpr_rl.models.decoder import CodeDecoder, DecoderState
from gpr_rl.models.lazy_ar import LazyDecoder
from gpr_rl.schema import InputSpec


class PTD(nn.Module):
    """Decoder over [thinking tokens, start token, codes] and the heads of GPR 3.1.

    Head j projects the same backbone states by a matrix of its own, then all heads share one
    output matrix per level: logits = W_level H_j x. There is no bias; the final norm has one.
    """

    def __init__(self, config: HHDConfig, spec: InputSpec) -> None:
        super().__init__()
        dim, levels = config.dim, spec.num_levels
        kind = LazyDecoder if config.decoder == "lazy_ar" else CodeDecoder
        self.decoder = kind(
            config,
            num_layers=config.num_ptd_layers,
            num_shared=config.num_thinking_tokens + 1,
            num_levels=levels - 1,
            num_codes=spec.num_codes,
        )
        self.head = nn.Parameter(torch.randn(config.num_mtp_heads, 1, dim, dim) * dim**-0.5)
        self.output = nn.Parameter(torch.randn(levels, spec.num_codes, dim) * 0.1 * dim**-0.5)

    def logits(
        self, state: DecoderState, codes: Int[Tensor, "B S K L"]
    ) -> Float[Tensor, "B S K L V"]:
        """Return head 1's logits along known paths; level l sees codes[..., :l] only."""
        check_paths(codes, *self.output.shape[:2])
        weight = self.output @ self.head[0]  # [L, V, D], one product for both maps
        first = (state.start @ weight[0].T)[:, :, None, None]
        first = first.expand(-1, -1, codes.shape[2], -1, -1)
        hidden = self.decoder.candidates(state, codes[..., :-1])
        by_level = hidden.flatten(0, 2).transpose(0, 1) @ weight[1:].mT  # [L-1, BSK, V]
        later = by_level.transpose(0, 1).unflatten(0, codes.shape[:3])
        return torch.cat([first, later], dim=3)

    def head_logits(
        self, state: DecoderState, codes: Int[Tensor, "B S N L"]
    ) -> Float[Tensor, "B S N L V"]:
        """Return the logits of head n along path n of each state, all heads and levels."""
        check_paths(codes, *self.output.shape[:2])
        batch, states, heads, levels = codes.shape
        weight = self.output @ self.head  # [N, L, V, D]
        hidden = self.decoder.candidates(state, codes[..., :-1])
        start = state.start[:, :, None, None].expand(-1, -1, heads, -1, -1)
        hidden = torch.cat([start, hidden], dim=3).flatten(0, 1)
        by_head = hidden.permute(1, 2, 0, 3).flatten(0, 1) @ weight.flatten(0, 1).mT
        return by_head.view(heads, levels, batch, states, -1).permute(2, 3, 0, 1, 4)

    def trunk_logits(self, state: DecoderState) -> Float[Tensor, "B S L V"]:
        """Return head 1's logits of every level before any code is known: LazyAR's trunk alone.

        Raises:
            ValueError: The decoder has no trunk.
        """
        if state.trunk is None or not isinstance(self.decoder, LazyDecoder):
            raise ValueError("the decoder has no trunk: decoder is plain or num_lazy_layers is 0")
        weight = self.output @ self.head[0]  # [L, V, D]
        hidden = self.decoder.trunk_norm(state.trunk)
        return torch.einsum("bsld,lvd->bslv", hidden, weight)

    def next_logits(self, hidden: Float[Tensor, "*rows D"], level: int) -> Tensor:
        """Return head 1's logits [..., V] at 0-based `level` from the output before it."""
        return hidden @ (self.output[level] @ self.head[0, 0]).T
