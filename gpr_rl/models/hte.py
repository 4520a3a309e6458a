"""Hierarchical Token-wise Evaluator: the value of every prefix and of the whole path (GPR 2.2).

Dims: B sequences, S states per sequence, K candidates per state, L levels, D width.
"""

import torch
from jaxtyping import Float, Int
from tensordict import TensorClass
from torch import Tensor, nn

from gpr_rl.models.checks import check_paths
from gpr_rl.models.config import HHDConfig
from gpr_rl.models.decoder import CodeDecoder, Context, DecoderState
from gpr_rl.schema import InputSpec


class HTEOutput(TensorClass):
    """Values in units of reward / reward_scale, and click and conversion logits."""

    value: Tensor  # [..., L], value[..., l-1] = V(s, z_{1:l-1})
    pctr_logit: Tensor  # [...]
    pcvr_logit: Tensor  # [...]
    final_value: Tensor  # [...], of the full path


class HTE(nn.Module):
    """A decoder of its own over sg(h) and the emitted prefix; critic of RL and guide of the beam.

    The stop-gradient keeps its losses from the HSD and the PTD. All heads start at zero: every
    value is then 0 and every probability one half.
    """

    reward_scale: Tensor
    stop_gradient: bool = True
    """False lets losses on the values move the HSD as well: an ablation, not the paper's."""

    def __init__(self, config: HHDConfig, spec: InputSpec) -> None:
        super().__init__()
        self.decoder = CodeDecoder(
            config,
            num_layers=config.num_hte_layers,
            num_shared=1,
            num_levels=spec.num_levels,
            num_codes=spec.num_codes,
        )
        self.value_weight = nn.Parameter(torch.zeros(spec.num_levels, config.dim))
        self.value_bias = nn.Parameter(torch.zeros(spec.num_levels))
        self.path_head = nn.Linear(config.dim, 3)
        nn.init.zeros_(self.path_head.weight)
        nn.init.zeros_(self.path_head.bias)
        self.register_buffer("reward_scale", torch.ones(()))

    def begin(self, h: Float[Tensor, "B T D"], position: Int[Tensor, "B S"]) -> DecoderState:
        """Return what all candidates of a state share. The gradient stops at h."""
        return self.decoder.begin(h.detach() if self.stop_gradient else h, position)

    def prefix_value(self, hidden: Float[Tensor, "*rows D"], level: int) -> Tensor:
        """Return V(s, z_{1:level}) [...] from the output after `level` codes (0 to L - 1)."""
        return hidden @ self.value_weight[level] + self.value_bias[level]

    def forward(self, context: Context, codes: Int[Tensor, "B *SK L"]) -> HTEOutput:
        """Return values and predictions along known paths, a batch as `codes` without L.

        Codes are [B, K, L] for requests; for windows with S states each [B, S, L], one path per
        state, or [B, S, K, L]. Invalid candidates may hold any codes.
        """
        if codes.dim() == 3 and context.position.shape[1] == 1:
            return self.forward(context, codes[:, None])[:, 0]
        if codes.dim() == 3:
            return self.forward(context, codes[:, :, None])[:, :, 0]
        check_paths(codes, len(self.value_weight), self.decoder.num_codes)
        state = self.begin(context.h, context.position)
        hidden = self.decoder.candidates(state, codes)
        first = self.prefix_value(state.start, 0)[:, :, None, None]
        later = (hidden[..., :-1, :] * self.value_weight[1:]).sum(-1) + self.value_bias[1:]
        value = torch.cat([first.expand(-1, -1, codes.shape[2], -1), later], dim=3)
        pctr, pcvr, final_value = self.path_head(hidden[..., -1, :]).unbind(-1)
        return HTEOutput(
            value=value,
            pctr_logit=pctr,
            pcvr_logit=pcvr,
            final_value=final_value,
            batch_size=codes.shape[:3],
        )
