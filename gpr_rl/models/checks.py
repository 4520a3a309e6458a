"""Checks of what a model is given: a wrong number would read another vocabulary's embedding.

Dims: B sequences, T tokens, L levels, V codes.
"""

import torch
from torch import Tensor

from gpr_rl.checks import check_codes
from gpr_rl.schema import NUM_TIME_GAPS, Action, InputSpec, Tokens, TokenType


def check_tokens(tokens: Tokens, spec: InputSpec, *, limited: bool = False) -> None:
    """Check token sequences; of padding the time gap alone is read.

    Raises:
        ValueError: Another shape than `spec`'s, a number outside of its range, a
            preference that is not finite, a sequence that does not begin with a USER token, has
            padding before its end or, where `limited`, has more than `max_tokens`. Names field,
            place and value.
    """
    batch, length = tokens.kind.shape
    for name, shape in (
        ("codes", [batch, length, spec.num_levels]),
        ("context", [batch, length, len(spec.context_cardinalities)]),
        ("user", [batch, len(spec.user_cardinalities)]),
        ("preference", [batch, spec.num_levels, spec.num_codes]),
    ):
        found = list(getattr(tokens, name).shape)
        if found != shape:
            raise ValueError(f"tokens.{name} must be {shape} for this model, got {found}")
    kind = tokens.kind
    real = kind != TokenType.PAD
    contexts, users = (
        torch.tensor(sizes, dtype=torch.long, device=kind.device)
        for sizes in (spec.context_cardinalities, spec.user_cardinalities)
    )
    bad_codes = _outside(tokens.codes, spec.num_codes).any(-1) & real
    bad_action = _outside(tokens.action, len(Action)) & real
    bad_context = _outside(tokens.context, contexts).any(-1) & (kind == TokenType.ENVIRONMENT)
    bad_user = _outside(tokens.user, users).any(-1)
    bad_order = (kind[:, 0] != TokenType.USER) | (real[:, 1:] & ~real[:, :-1]).any(-1)
    order = "begin with a USER token and be padded on the right alone"
    rules = [
        ("kind", f"be a token type below {len(TokenType)}", _outside(kind, len(TokenType))),
        ("codes", f"lie in [0, {spec.num_codes})", bad_codes),
        ("action", f"be an action below {len(Action)}", bad_action),
        ("time_gap", f"lie in [0, {NUM_TIME_GAPS})", _outside(tokens.time_gap, NUM_TIME_GAPS)),
        ("context", f"lie below {list(spec.context_cardinalities)}", bad_context),
        ("user", f"lie below {list(spec.user_cardinalities)}", bad_user),
        ("kind", order, bad_order),
        ("preference", "be finite", ~tokens.preference.sum((1, 2)).isfinite()),
    ]
    if torch.stack([wrong.any() for _, _, wrong in rules]).any():  # the device waits once
        name, rule, wrong = next(found for found in rules if found[2].any())
        row, *token = wrong.nonzero()[0].tolist()
        values = getattr(tokens, name)[(row, *token)]
        if name == "preference":
            values = values[~values.isfinite()][:1]
        place = f"sequence {row}" + (f", token {token[0]}" if token else "")
        raise ValueError(f"tokens.{name} must {rule}, got {values.tolist()} in {place}")
    if limited and batch and (longest := int(real.sum(1).max())) > spec.max_tokens:
        raise ValueError(f"sequences must have at most {spec.max_tokens} tokens, got {longest}")


def check_some(tokens: Tokens) -> None:
    """Raise a ValueError where there is no sequence."""
    if not len(tokens.kind):
        raise ValueError("tokens must hold at least one sequence, got none")


def check_paths(codes: Tensor, num_levels: int, num_codes: int) -> None:
    """Raise a ValueError where paths [..., L] have other levels, or a code outside of [0, V)."""
    if codes.shape[-1] != num_levels:
        raise ValueError(f"paths must have {num_levels} codes, got {codes.shape[-1]}")
    check_codes(codes, num_codes)


def _outside(values: Tensor, size: int | Tensor) -> Tensor:
    return (values < 0) | (values >= size)
