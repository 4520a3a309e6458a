"""Multi-token prediction: N heads learn the paths of the next N ads (GPR 3.1, Eq. 3).

Dims: B windows, P supervised positions per window, N heads, L levels, V codes.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from gpr_rl.schema import Targets, Tokens, TokenType


def validate_targets(tokens: Tokens, targets: Targets) -> None:
    """Check once, where batches are made, that no supervised position can see its own answer.

    Raises:
        ValueError: A valid target stands at no ENVIRONMENT token, or before the end of the prompt
            block, whose tokens see each other both ways; or its codes are not legal.
    """
    valid = targets.valid.any(-1)
    row = torch.nonzero(valid)[:, 0]
    position = targets.position[valid]
    if ((position < 0) | (position >= tokens.kind.shape[1])).any():
        raise ValueError(
            f"target positions must lie in [0, {tokens.kind.shape[1]}), got "
            f"{int(position.min())} to {int(position.max())}"
        )
    kind, prompt = tokens.kind[row, position], tokens.prompt_length[row]
    for at in (position < prompt - 1).nonzero()[:1, 0].tolist():
        raise ValueError(
            "target positions must be at least prompt_length - 1, got position "
            f"{int(position[at])} in window {int(row[at])} with prompt_length {int(prompt[at])}"
        )
    for at in (kind != TokenType.ENVIRONMENT).nonzero()[:1, 0].tolist():
        raise ValueError(
            f"targets must stand at ENVIRONMENT tokens, got {TokenType(int(kind[at])).name} "
            f"at position {int(position[at])} of window {int(row[at])}"
        )
    legal = targets.legal_mask.gather(-1, targets.codes[..., None]).squeeze(-1)
    if not legal[targets.valid].all():
        raise ValueError("legal_mask must hold every valid target's own codes")


def path_log_prob(logits: Float[Tensor, "B P N L V"], targets: Targets) -> Float[Tensor, "B P N"]:
    """Return log P_j of each target's whole path, among legal codes; 0 where not valid."""
    masked = logits.masked_fill(~targets.legal_mask, torch.finfo(logits.dtype).min)
    flat = masked.flatten(0, 3)
    nll = F.cross_entropy(flat, targets.codes.flatten(), reduction="none")
    return -nll.view(targets.codes.shape).sum(-1).where(targets.valid, 0.0)


def mtp_loss(
    logits: Float[Tensor, "B P N L V"],
    targets: Targets,
    head_logits: Float[Tensor, " N"],
    entropy_weight: float = 0.1,
    weight: Float[Tensor, "B P N"] | None = None,
) -> Float[Tensor, ""]:
    """Return the loss of GPR Eq. 3, or of Eq. 4 when value weights (`vaft_weight`) are given.

    loss = -sum_j w_j mean_{(window, position) valid for j} [ w^V sum_l log P_j(z_l | z_{1:l-1}) ]
    - entropy_weight * H(w), with w = softmax(head_logits) on the simplex, equal at the start.
    Differs from the paper: the entropy term (nats of loss per nat, not given there), without which
    w collapses onto the easiest head. Heads without a valid target in this batch are left out and
    the others' weights renormalised.

    Raises:
        ValueError: No target is valid.
    """
    count = targets.valid.flatten(0, 1).sum(0)
    if not count.any():
        raise ValueError("targets hold no valid position: nothing to learn from")
    score = path_log_prob(logits, targets)
    if weight is not None:
        score = score * weight
    per_head = -score.flatten(0, 1).sum(0) / count.clamp_min(1)
    absent = torch.finfo(head_logits.dtype).min
    log_head_weight = head_logits.masked_fill(count == 0, absent).log_softmax(0)
    head_weight = log_head_weight.exp()
    entropy = -(head_weight * log_head_weight).sum()
    return (head_weight * per_head).sum() - entropy_weight * entropy
