"""Losses that parts of the model bring along, beside that of a training stage.

Dims: B windows, P supervised positions per window, L levels, V codes, T tokens, R recursions.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gpr_rl.checks import check_at_least
from gpr_rl.models.decoder import Context
from gpr_rl.models.hhd import HHD
from gpr_rl.models.mor import balance_loss, depth_share, z_loss
from gpr_rl.models.refiner import path_embedding
from gpr_rl.schema import Targets


@dataclass(frozen=True, kw_only=True)
class AuxiliaryConfig:
    """Weights of the parts' own losses; only those of parts that the model has count."""

    balance: float = 0.01
    """Of the balance between recursion depths (Switch Transformer)."""
    router_z: float = 1e-3
    """Of the size of the router's logits (ST-MoE)."""
    refining: float = 1.0
    """Of the denoiser's error, from which nothing else learns."""
    trunk: float = 0.03
    """Of the levels predicted by LazyAR's trunk alone, a sum over levels and all codes. Not given
    in the source; at 0.3 it holds the policy back (`docs/log.md`)."""

    def __post_init__(self) -> None:
        check_at_least(0, **asdict(self))

    def total(self, parts: Mapping[str, Tensor]) -> Tensor | float:
        """Return the weighted sum of `auxiliary_parts`; 0 without any."""
        return sum((getattr(self, name) * part for name, part in parts.items()), start=0.0)


def auxiliary_parts(
    model: HHD,
    context: Context,
    targets: Targets,
    generator: torch.Generator | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Return the losses of the parts that the model has, named as their weights are.

    `AuxiliaryConfig.total` of them is what to add to a stage's loss. `context` is of `model.window`
    at the targets' positions; head 1's targets are learned.
    """
    return parts_losses(model, context, targets.codes[:, :, 0], targets.valid[..., 0], generator)


def has_parts(model: object) -> bool:
    """Return whether any part of a model has a loss of its own; other models than HHD have none."""
    if not isinstance(model, HHD):
        return False
    config = model.config
    return bool(
        config.num_recursions
        or config.num_refining_steps
        or (config.decoder == "lazy_ar" and config.num_lazy_layers)
    )


def parts_losses(
    model: HHD,
    context: Context,
    codes: Int[Tensor, "B P L"],
    valid: Bool[Tensor, "B P"],
    generator: torch.Generator | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Return `auxiliary_parts` for the paths that follow a context's P states, where `valid`."""
    parts: dict[str, Tensor] = {}
    if context.router_logits is not None:
        real = _real(context)
        parts["balance"] = balance_loss(context.router_logits, real)
        parts["router_z"] = z_loss(context.router_logits, real)
    if model.refiner is not None:
        assert context.thought is not None
        embedding = model.hsd.embedding
        target = path_embedding(embedding.table[: embedding.num_item_codes], codes)
        parts["refining"] = model.refiner.loss(context.thought, target, valid, generator)
    if context.trunk is not None:
        logits = model.ptd.trunk_logits(context.state())
        nll = F.cross_entropy(logits.flatten(0, 2), codes.flatten(), reduction="none")
        nll = nll.view(codes.shape).sum(-1).where(valid, 0.0)
        parts["trunk"] = nll.sum() / valid.sum().clamp_min(1)
    return parts


def depth_shares(context: Context) -> dict[str, Float[Tensor, ""]]:
    """Return the share of tokens that stop at each recursion depth, to log; empty without any.

    A share near 1 says that the router has collapsed.
    """
    if context.router_logits is None:
        return {}
    share = depth_share(context.router_logits.detach(), _real(context))
    return {f"depth_{depth}": part for depth, part in enumerate(share, 1)}


def _real(context: Context) -> Tensor:
    """Return bool [B, T], without the slot of external knowledge, which is not routed."""
    assert context.router_logits is not None
    return context.key_mask[:, -context.router_logits.shape[1] :]
