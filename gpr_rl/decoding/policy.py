"""What decoding asks of a policy, and the one way it is asked.

Dims: B requests, W prefixes per request, L levels, l codes in a prefix, V codes per level.
"""

from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor


class Policy(Protocol):
    """The least a policy offers.

    One with `begin(context) -> (log_prob [B,1,V], value [B,1], cache)` and
    `extend(context, cache, parent, code) -> (log_prob [B,W,V], value [B,W], cache)`, where state w
    appends `code[b, w]` to state `parent[b, w]` of the call before, is asked through these two.
    `final_value(context, codes [B,W,L]) -> [B,W]`, where it exists, guides the beam at the end.
    """

    def encode(self, request: Any) -> Any:
        """Return the context of B requests; runs once per search."""

    def step(self, context: Any, prefix: Tensor) -> tuple[Tensor, Tensor]:
        """Return log_prob [B, W, V] of the next code and value [B, W] = V(s, prefix)."""


class PathStates:
    """A policy's view of W prefixes per request: the next code's log-probabilities and values.

    `context` is what the policy made of the requests, `log_prob` [B, W, V] is over all codes, legal
    or not, `value` [B, W] is V(s, prefix).
    """

    def __init__(
        self, policy: Any, request: Any, empty: Int[Tensor, "B 1 0"], num_codes: int
    ) -> None:
        """Encode the requests and open the empty prefix, W = 1."""
        self._policy = policy
        self._num_codes = num_codes
        self._cache: Any = None
        self._incremental = hasattr(policy, "begin") and hasattr(policy, "extend")
        self.context = policy.encode(request)
        if self._incremental:
            log_prob, value, self._cache = policy.begin(self.context)
        else:
            log_prob, value = policy.step(self.context, empty)
        self._set(log_prob, value, empty)

    def _set(self, log_prob: Tensor, value: Tensor, prefix: Tensor) -> None:
        shape = prefix.shape[:2]
        if log_prob.shape != (*shape, self._num_codes) or value.shape != shape:
            raise ValueError(
                f"the policy must return log_prob {[*shape, self._num_codes]} and value"
                f" {list(shape)}, got {list(log_prob.shape)} and {list(value.shape)}"
            )
        self.log_prob = log_prob
        self.value = value
        self._row = torch.arange(shape[1], device=prefix.device).expand(shape)

    def extend(self, prefix: Int[Tensor, "B W l"], parent: Int[Tensor, "B W"]) -> None:
        """Move to `prefix`, whose first l - 1 codes are those of state `parent`."""
        if self._incremental:
            row = self._row.gather(1, parent)
            log_prob, value, self._cache = self._policy.extend(
                self.context, self._cache, row, prefix[..., -1]
            )
        else:
            log_prob, value = self._policy.step(self.context, prefix)
        self._set(log_prob, value, prefix)

    def keep(self, index: Int[Tensor, "B k"]) -> None:
        """Drop all states but `index`."""
        self.log_prob = pick(self.log_prob, index)
        self.value = pick(self.value, index)
        self._row = self._row.gather(1, index)


def pick(x: Tensor, index: Int[Tensor, "B k"]) -> Tensor:
    """Return x[b, index[b, k]] of x [B, W, ...], as [B, k, ...]."""
    batch, width = x.shape[:2]
    first = torch.arange(0, batch * width, width, device=index.device)
    rows = (index + first[:, None]).flatten()
    return x.flatten(0, 1).index_select(0, rows).unflatten(0, index.shape)
