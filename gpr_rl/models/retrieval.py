"""What the architecture study asks of every model: learn the next ad, rank the whole catalogue.

Dims: B windows or requests, T tokens, P supervised positions, N ads, M organic items, L levels.
"""

from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float, Int
from torch import Tensor

from gpr_rl.schema import Tokens


@dataclass(frozen=True)
class NextAdBatch:
    """B windows with the ad that follows at P of their positions."""

    tokens: Tokens
    item: Tensor
    """int64 [B, T], item of each token (ads 0..N-1, then organic items), -1 where there is none."""
    position: Tensor
    """int64 [B, P], index of the E token that the prediction is made at; it sees nothing after."""
    ad_id: Tensor
    """int64 [B, P], the ad of that request; anything legal where not valid."""
    codes: Tensor
    """int64 [B, P, L], its path."""
    valid: Tensor
    """bool [B, P]."""


class Retriever(Protocol):
    """A `torch.nn.Module` of the study; dims as in the module."""

    def loss(self, batch: NextAdBatch) -> Float[Tensor, ""]:
        """Return the training loss, a mean over valid positions."""

    def rank(self, tokens: Tokens, item: Int[Tensor, "B T"], k: int) -> Int[Tensor, "B k"]:
        """Return the k best ads of the whole catalogue for each request, best first, distinct.

        The request is each row's last real token, an E token. Where a model finds fewer than k
        ads (codes shared by several ads count as the ad that wins the path), -1 fills the rest.
        """
