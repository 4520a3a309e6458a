"""Which ads a request may be answered with, by itself and in a batch.

Dims: B requests, N ads.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.functional import pad

from gpr_rl.decoding.trie import CodeTrie


class Mask(NamedTuple):
    """The ads that one request may be answered with, as it was submitted."""

    eligible: Tensor | None  # bool [N]; None: all
    is_own: bool  # whether the caller gave it: then it rules out ads that came later


def mask_of(request: Any, eligible: Tensor | None, trie: CodeTrie, world: Any) -> Mask:
    """Return a request's mask: the one given, else the world's, else all ads.

    Raises:
        ValueError: `eligible` is not bool [N], or there is none and the world doesn't know the
            request.
    """
    if eligible is not None:
        if eligible.dtype != torch.bool or tuple(eligible.shape) != (trie.num_ads,):
            raise ValueError(
                f"eligible must be bool [{trie.num_ads}],"
                f" got {eligible.dtype} {list(eligible.shape)}"
            )
        return Mask(eligible, True)
    if world is None:
        return Mask(None, False)
    request_id = int(request.request_id)
    if not 0 <= request_id < world.num_requests:
        raise ValueError(
            f"request_id must be one of the world's, 0..{world.num_requests - 1}, or come with"
            f" eligible; got {request_id}"
        )
    return Mask(world.eligible(request.request_id)[0], False)


def stacked(masks: Sequence[Mask], trie: CodeTrie) -> Bool[Tensor, "B N"] | None:
    """Return the masks of a batch, as long as the catalogue is by now; None: all ads."""
    if all(mask.eligible is None for mask in masks):
        return None
    every = torch.ones(trie.num_ads, dtype=torch.bool, device=trie.tree.device)

    def filled(mask: Mask) -> Tensor:
        if mask.eligible is None:
            return every
        missing = len(every) - len(mask.eligible)
        return pad(mask.eligible, (0, missing), value=not mask.is_own)

    return torch.stack([filled(mask) for mask in masks])
