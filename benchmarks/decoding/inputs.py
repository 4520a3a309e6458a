"""Requests that only speed is measured on: past items are ads drawn at random.

Dims: B requests, T tokens, L levels, V codes per level, N ads, A user attributes.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from gpr_rl.schema import Action, InputSpec, Request, Tokens, TokenType


def random_paths(
    num_ads: int, num_codes: int, num_levels: int, generator: torch.Generator
) -> Int[Tensor, "N L"]:
    """Return paths that are uniform over V^L, in 16 bits where codes fit."""
    kind = torch.int16 if num_codes <= 1 << 15 else torch.int32
    return torch.randint(num_codes, (num_ads, num_levels), dtype=kind, generator=generator)


def input_spec(num_levels: int, num_codes: int, num_items: int, num_users: int) -> InputSpec:
    """Return the vocabulary of requests with one user attribute and one of their context."""
    return InputSpec(
        num_levels=num_levels,
        num_codes=num_codes,
        user_cardinalities=(num_users,),
        context_cardinalities=(2,),
        max_tokens=num_items + 2,
    )


def random_requests(
    spec: InputSpec, paths: Int[Tensor, "N L"], num_requests: int, generator: torch.Generator
) -> Request:
    """Return requests of users who saw as many ads as fit, drawn from `paths`, in a row."""
    length = spec.max_tokens
    kind = torch.full((num_requests, length), int(TokenType.ORGANIC))
    kind[:, 0], kind[:, -1] = int(TokenType.USER), int(TokenType.ENVIRONMENT)
    is_item = kind == TokenType.ORGANIC

    def drawn(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    codes = paths[drawn(len(paths), num_requests, length)].long()
    nothing = torch.zeros(num_requests, spec.num_levels, spec.num_codes)
    tokens = Tokens(
        kind=kind,
        codes=codes * is_item[..., None],
        action=is_item * int(Action.VIEW),
        time_gap=torch.ones_like(kind),
        context=torch.zeros_like(kind)[..., None],
        user=drawn(spec.user_cardinalities[0], num_requests, 1),
        preference=nothing,
        prompt_length=torch.full((num_requests,), length - 1),
        batch_size=[num_requests],
    )
    number = torch.arange(num_requests)
    return Request(
        request_id=number,
        user_id=number,
        timestamp=number,
        tokens=tokens,
        popularity=nothing,
        batch_size=[num_requests],
    )
