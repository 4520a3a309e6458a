"""LazyAR: a decoder whose first layers do not wait for the codes (GR4AD).

Of its L_d layers the first K_d, the trunk, see a level's position and the context, but no code:
m_t^0 = p_t, m_t^l = Dec^l(m_t^{l-1}, context). They run once for all levels and all beams. Then
Fuse(m, s) = W_f [m * (W_g s); s] takes in the embedding s of the code before (a start embedding at
level 1), and layers K_d + 1..L_d run code by code. Only a summary of the source is at hand, hence:
context is h and the thinking tokens, which pass the trunk as well; level positions do not attend
to one another, as the formula has no other level's m in it; no norm inside Fuse.

Dims: B sequences, S states per sequence, K candidates per state, L levels, D width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gpr_rl.models.config import HHDConfig
from gpr_rl.models.decoder import CodeDecoder, DecoderState, Refine, run_shared


class Fuse(nn.Module):
    """W_f [m * (W_g s); s]: what the trunk knows of a level, gated by the code before it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, dim, bias=False)
        self.output = nn.Linear(2 * dim, dim, bias=False)

    def forward(
        self, trunk: Float[Tensor, "*rows D"], code: Float[Tensor, "*rows D"]
    ) -> Float[Tensor, "*rows D"]:
        """Return the input of the first autoregressive layer."""
        return self.join(trunk, *self.of_code(code))

    def of_code(self, code: Float[Tensor, "*rows D"]) -> tuple[Tensor, Tensor]:
        """Return what depends on the code alone: W_g s, and W_f's part for s."""
        own = F.linear(code, self.output.weight[:, code.shape[-1] :])
        return F.linear(code, self.gate.weight), own

    def join(self, trunk: Tensor, gate: Tensor, own: Tensor) -> Tensor:
        """Return `forward` of a code whose `of_code` is known."""
        dim = own.shape[-1]
        gated, weight = (trunk * gate).reshape(-1, dim), self.output.weight[:, :dim]
        return torch.addmm(own.reshape(-1, dim), gated, weight.T).view(own.shape)


class LazyDecoder(CodeDecoder):
    """A `CodeDecoder` with K_d of its layers as trunk; the same interface, cache and candidates.

    With K_d = `config.num_lazy_layers` = 0 it has the parameters of a `CodeDecoder` and gives its
    numbers. The state's own intent embedding is added to the level positions, as it is to the other
    shared tokens. `num_layers` is L_d, more than K_d; `num_levels` is L - 1.
    """

    def __init__(
        self, config: HHDConfig, num_layers: int, num_shared: int, num_levels: int, num_codes: int
    ) -> None:
        super().__init__(config, num_layers, num_shared, num_levels, num_codes)
        self.trunk_blocks = nn.ModuleList(self.blocks[: config.num_lazy_layers])
        self.blocks = nn.ModuleList(self.blocks[config.num_lazy_layers :])
        if len(self.trunk_blocks):
            dim = config.dim
            self.level = nn.Parameter(torch.randn(num_levels + 1, dim) * dim**-0.5)
            self.fuse = Fuse(dim)
            self.trunk_norm = nn.LayerNorm(dim)

    def _begin(
        self, x: Tensor, own: Tensor, memory: Tensor, visible: Tensor, refine: Refine | None
    ) -> DecoderState:
        num_lazy = len(self.trunk_blocks)
        if num_lazy == 0:
            return super()._begin(x, own, memory, visible, refine)
        thinking, start = x[:, :, :-1], x[:, :, -1:]
        levels = own[:, :, None] + self.level
        # thinking tokens see those before them, a level's position sees all of these and itself
        tokens, num_thinking = torch.cat([thinking, levels], dim=2), thinking.shape[2]
        index = torch.arange(tokens.shape[2], device=tokens.device)
        seen = (index <= index[:, None]) & (index < num_thinking) | (index == index[:, None])
        tokens, _ = run_shared(self.trunk_blocks, tokens, None, memory, visible, seen)
        thinking, trunk = tokens.tensor_split([num_thinking], dim=2)
        x = torch.cat([thinking, self.fuse(trunk[:, :, :1], start)], dim=2)
        state = super()._begin(x, own, memory[:, num_lazy:], visible, refine)
        return state._replace(trunk=trunk)

    def _inputs(self, state: DecoderState, codes: Tensor, level: int) -> Tensor:
        if state.trunk is None:
            return self.embed(codes, level)
        num_new = codes.shape[-1]
        trunk = state.trunk[:, :, None, level + 1 : level + 1 + num_new]
        trunk = trunk.expand(-1, -1, codes.shape[2], -1, -1)
        table = self.codes[level * self.num_codes : (level + num_new) * self.num_codes]
        if codes.numel() <= len(table):
            return self.fuse(trunk, self.embed(codes, level))
        gate, own = self.fuse.of_code(table)  # once per code that exists, not per beam
        row = codes + self.num_codes * torch.arange(num_new, device=codes.device)
        return self.fuse.join(trunk, F.embedding(row, gate), F.embedding(row, own))
