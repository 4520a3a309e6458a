"""Every shape that crosses a module border, in one place (GPR 2.1).

Dims: B requests (or windows), T tokens, L code levels, V codes per level, A user attributes,
C context attributes, P supervised positions per window, N heads (next ads), K candidates.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from tensordict import TensorClass
from torch import Tensor

NUM_TIME_GAPS = 16
"""Buckets of `Tokens.time_gap`; see `time_gap_bucket`."""


class TokenType(IntEnum):
    """The four token types of GPR 2.1, and padding."""

    PAD = 0
    USER = 1
    ORGANIC = 2
    ENVIRONMENT = 3
    ITEM = 4


class Action(IntEnum):
    """What the user did. Organic items are viewed; ads are shown, clicked or converted on."""

    NONE = 0
    VIEW = 1
    IMPRESSION = 2
    CLICK = 3
    CONVERSION = 4


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What a model must know of a world's vocabulary. Stored beside every checkpoint."""

    num_levels: int
    """L, semantic ID codes per item."""
    num_codes: int
    """V, codes per level (the largest where levels differ)."""
    user_cardinalities: tuple[int, ...]
    """Values per user attribute (U token), A entries."""
    context_cardinalities: tuple[int, ...]
    """Values per context attribute (E token), C entries."""
    max_tokens: int
    """T, the longest token sequence."""


def with_tuples(data: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object with tuples in place of lists, as dataclasses have them."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}


class Tokens(TensorClass):
    """The unified token sequence of B users (GPR 2.1), padded on the right.

    An ORGANIC or ITEM token is one position that carries L codes. Position 0 is the USER token.
    Every ITEM token follows the ENVIRONMENT token of the request it answered. `prompt_length`
    counts the leading tokens that form the prompt block of the hybrid mask (Eq. 2 as corrected).
    """

    kind: Tensor  # int64 [B, T], a TokenType
    codes: Tensor  # int64 [B, T, L], 0 where the token has none
    action: Tensor  # int64 [B, T], an Action
    time_gap: Tensor  # int64 [B, T], bucket of the seconds since the token before
    context: Tensor  # int64 [B, T, C], attributes of ENVIRONMENT tokens, 0 elsewhere
    user: Tensor  # int64 [B, A], attributes of the USER token
    preference: (
        Tensor  # float32 [B, L, V], past positive share per code when the USER token was set
    )
    prompt_length: Tensor  # int64 [B]


class Request(TensorClass):
    """B ad requests: who asks, when, and the tokens up to and with this request's E token.

    `popularity` and `tokens.preference` hold the same numbers in worlds that set the USER token at
    the request, and are two because the model reads one, whenever that was set, Eq. 6 the other.
    """

    request_id: Tensor  # int64 [B]
    user_id: Tensor  # int64 [B]
    timestamp: Tensor  # int64 [B], seconds since the world's day 0
    tokens: Tokens
    popularity: Tensor  # float32 [B, L, V], P_l(t) of Eq. 6, from events before the request only


class Targets(TensorClass):
    """Supervision of B windows at P positions: head n learns the path of the n-th next ad."""

    position: Tensor  # int64 [B, P], index of the E token that the prediction is made at
    codes: Tensor  # int64 [B, P, N, L]
    action: Tensor  # int64 [B, P, N], an Action
    valid: Tensor  # bool [B, P, N]; where False the other fields may hold anything legal
    legal_mask: Tensor  # bool [B, P, N, L, V], children of the target's own prefix, it included
    pctr: Tensor  # float32 [B, P, N], rankers' click probability of the target ad
    pcvr: Tensor  # float32 [B, P, N]
    ecpm: Tensor  # float32 [B, P, N]
    final_value: Tensor  # float32 [B, P, N], Eq. 5


class Candidates(TensorClass):
    """K candidate ads per request, each with its path. Padding: `valid` False, `ad_id` -1."""

    codes: Tensor  # int64 [B, K, L]
    log_prob: Tensor  # float [B, K, L]; -inf where invalid
    value: Tensor  # float [B, K, L]; value[..., l-1] = V(s, z_{1:l-1})
    ad_id: Tensor  # int64 [B, K]
    valid: Tensor  # bool [B, K]
    log_weight: Tensor | None = None
    # float [B, K], log importance weight of paths drawn without replacement; -inf where invalid


def time_gap_bucket(seconds: Tensor) -> Tensor:
    """Return the log2 bucket in [0, NUM_TIME_GAPS) of gaps in seconds (any integer shape).

    Bucket 0 is under 8 s, bucket b covers [2^(b+2), 2^(b+3)) s, the last one all above 36 h.
    """
    exponent = torch.log2(seconds.clamp_min(1).double()).floor().long() - 2
    return exponent.clamp(0, NUM_TIME_GAPS - 1)
