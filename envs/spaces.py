"""What an observation holds, for Gymnasium and TorchRL alike, and the way back to a `Request`.

Dims: B requests, T tokens, L levels, V codes per level, A user attributes, C context attributes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from tensordict import TensorDictBase
from torch import Tensor

from gpr_rl.schema import NUM_TIME_GAPS, Action, InputSpec, Request, Tokens, TokenType

TOKEN_KEYS = {
    "token_kind": "kind",
    "token_codes": "codes",
    "token_action": "action",
    "token_time_gap": "time_gap",
    "token_context": "context",
    "user": "user",
    "preference": "preference",
    "prompt_length": "prompt_length",
}
"""Observation key -> field of `gpr_rl.schema.Tokens`. `action` is the environment's own word."""
IDENTITY = ("request_id", "user_id", "timestamp")
"""What says which request a row is at; infos have it, and TensorDicts."""


@dataclass(frozen=True)
class Field:
    """One entry of an observation: numbers of `dtype` in [0, high], broadcast to `shape`."""

    shape: tuple[int, ...]
    high: int | tuple[int, ...]
    dtype: torch.dtype = torch.int64


def observation_fields(spec: InputSpec) -> dict[str, Field]:
    """Return all entries of an observation but the mask, by key."""
    tokens, levels, codes = spec.max_tokens, spec.num_levels, spec.num_codes
    context = tuple(n - 1 for n in spec.context_cardinalities)
    user = tuple(n - 1 for n in spec.user_cardinalities)
    return {
        "token_kind": Field((tokens,), max(TokenType)),
        "token_codes": Field((tokens, levels), codes - 1),
        "token_action": Field((tokens,), max(Action)),
        "token_time_gap": Field((tokens,), NUM_TIME_GAPS - 1),
        "token_context": Field((tokens, len(context)), context),
        "user": Field((len(user),), user),
        "preference": Field((levels, codes), 1, torch.float32),
        "prompt_length": Field((), tokens),
        "popularity": Field((levels, codes), 1, torch.float32),
        "prefix": Field((levels,), codes - 1),
        "level": Field((), levels),
    }


def observation_space(spec: InputSpec) -> spaces.Space:
    """Return the Gymnasium space of one observation."""
    entries: dict[str, spaces.Space] = {}
    for key, field in observation_fields(spec).items():
        if field.shape == ():
            entries[key] = spaces.Discrete(int(np.asarray(field.high)) + 1)
        else:
            dtype = np.float32 if field.dtype == torch.float32 else np.int64
            # Gymnasium warns of a Box without extent; an attribute of one value would be one
            largest = np.maximum(np.asarray(field.high, dtype=dtype), dtype(1))
            high = np.broadcast_to(largest, field.shape)
            entries[key] = spaces.Box(np.zeros_like(high), high, dtype=dtype)
    entries["action_mask"] = spaces.Box(0, 1, (spec.num_codes,), dtype=np.int8)
    return spaces.Dict(entries)


def request_tensors(request: Request) -> dict[str, Tensor]:
    """Return the request tensors of observations, by key; ids and time are not among them."""
    tensors = {key: getattr(request.tokens, name) for key, name in TOKEN_KEYS.items()}
    return tensors | {"popularity": request.popularity}


def request_from_observation(
    observation: Mapping[str, NDArray | np.integer | Tensor] | TensorDictBase,
    info: Mapping[str, object] | None = None,
) -> Request:
    """Return the request that an observation shows, for a policy of `gpr_rl.models` to act on.

    Args:
        observation: Of any environment here: one of Gymnasium's (becomes a batch of 1), a batch
            of a vector environment, or a TensorDict of `AdRequestTorchEnv`.
        info: Of `reset` or `step`, where `request_id`, `user_id` and `timestamp` stand.
            A TensorDict has them itself.

    Returns:
        Request, batch [B]. `request_id`, `user_id` and `timestamp` are -1 where neither argument
        has them; no model reads them, but keyed draws (`sample_paths`) do.
    """
    known: dict[str, Any] = {**(info or {}), **observation}
    kind = torch.as_tensor(known["token_kind"])
    batched = kind.ndim > 1
    batch_size = kind.shape[:1] if batched else torch.Size([1])

    def take(key: str) -> Tensor:
        value = torch.as_tensor(known[key])
        return value if batched else value.unsqueeze(0)

    return Request(
        **{key: take(key) if key in known else kind.new_full(batch_size, -1) for key in IDENTITY},
        tokens=Tokens(
            **{name: take(key) for key, name in TOKEN_KEYS.items()}, batch_size=batch_size
        ),
        popularity=take("popularity"),
        batch_size=batch_size,
    )
