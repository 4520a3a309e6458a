"""An answer on its way: the future that a caller holds, and how long its list is.

Dims: B requests, K candidates, W beams.
"""

from concurrent.futures import Future

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn.functional import pad

from gpr_rl.schema import Candidates

_BLANK = {"log_prob": -torch.inf, "log_weight": -torch.inf, "ad_id": -1}
"""What padding holds; the rest is 0."""


class Answer(Future[Candidates]):
    """The future of one request's candidates. When it is done, it also says how they came about."""

    width: int = 0
    """Of the beam that found them."""
    version: int = 0
    """Of the catalogue that was searched."""
    cached: bool = False
    """Whether they came from the cache."""
    latency_ms: float = 0.0
    """From submission to answer."""


def for_future(error: BaseException) -> Exception:
    """Return an error that may be kept in a future; others would end whoever waits for it.

    SystemExit stops an event loop, and a future of asyncio refuses StopIteration.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(f"the search raised {type(error).__name__}")
    wrapped.__cause__ = error
    return wrapped


def resized(found: Candidates, num_candidates: int) -> Candidates:
    """Return the first K of W candidates, or all of them and padding up to K."""
    missing = num_candidates - found.valid.shape[1]
    if missing == 0:
        return found

    def field(name: str, x: Tensor) -> Tensor:
        return pad(x, (0, 0) * (x.ndim - 2) + (0, missing), value=_BLANK.get(name, 0))

    fields = {name: field(name, x) for name, x in found.items()}
    return Candidates(**fields, batch_size=found.batch_size)


def split(found: Candidates) -> list[Candidates]:
    """Return the B requests' candidates one by one; who keeps one does not keep the batch."""
    fields = dict(found.items())
    one = torch.Size([1])
    # slicing and copying the whole class takes three times as long
    return [
        Candidates.from_tensordict(
            TensorDict._new_unsafe(
                {name: x[i : i + 1].clone() for name, x in fields.items()}, batch_size=one
            )
        )
        for i in range(len(found))
    ]
