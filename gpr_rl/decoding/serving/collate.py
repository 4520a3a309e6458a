"""Single requests put together as a batch, and what tells two of them apart.

Dims: B requests, T tokens, N ads.
"""

import hashlib
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.functional import pad

from gpr_rl.schema import Request, Tokens

_PER_TOKEN = ("kind", "codes", "action", "time_gap", "context")
"""Fields of `Tokens` with a dimension T; 0, `TokenType.PAD`, is what padding holds."""


def collate_requests(requests: Sequence[Any]) -> Any:
    """Return the requests as one batch, in their order: `Request`s, tensors, what torch.cat takes.

    `Request`s of different lengths T are padded on the right, as worlds pad theirs.
    """
    if all(isinstance(request, Request) for request in requests):
        requests = _of_one_length(requests)
    return requests[0] if len(requests) == 1 else torch.cat(list(requests))


def _of_one_length(requests: Sequence[Request]) -> list[Request]:
    lengths = [request.tokens.kind.shape[1] for request in requests]
    longest = max(lengths)
    return [
        request if length == longest else _padded(request, longest - length)
        for request, length in zip(requests, lengths, strict=True)
    ]


def _padded(request: Request, missing: int) -> Request:
    tokens = request.tokens.clone(recurse=False)
    for name in _PER_TOKEN:
        values: Tensor = getattr(tokens, name)
        setattr(tokens, name, pad(values, (0, 0) * (values.ndim - 2) + (0, missing)))
    request = request.clone(recurse=False)
    request.tokens = tokens
    return request


def request_key(request: Any) -> Hashable:
    """Return (user id, digest of the tokens) of a `Request` of one; None for anything else.

    Two requests with one key are the same to a policy that reads tokens and popularity only, as
    the models of `gpr_rl.models` do. Neither `request_id` nor `timestamp` is in it.
    """
    if not isinstance(request, Request):
        return None
    tokens: Tokens = request.tokens
    fields = [getattr(tokens, name) for name in (*_PER_TOKEN, "user", "preference")]
    return int(request.user_id), digest(*fields, tokens.prompt_length, request.popularity)


def eligibility_key(eligible: Bool[Tensor, " N"] | None) -> Hashable:
    """Return a digest of which ads may be shown; None: all."""
    return None if eligible is None else digest(eligible)


def digest(*tensors: Tensor) -> bytes:
    """Return 16 bytes that differ where shapes, types or values do."""
    found = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.digest()
