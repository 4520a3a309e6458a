"""The paths of what users clicked or converted on before a request.

Dims: B requests, M past successes (the longest row), L levels.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from gpr_rl.data.streams import ragged


def past_successes(
    world: Any, request_id: Int[Tensor, " B"]
) -> tuple[Int[Tensor, "B M L"], Bool[Tensor, "B M"]]:
    """Return the codes of every earlier click and conversion of a request's user, oldest first.

    `world` is a `simulators.world.World` or one that wraps it.

    The same events as those of `Request.popularity`: strictly before the request. Rows that are
    shorter than M are filled with code 0 and are not valid; M is at least 1.
    """
    ids = request_id.numpy()
    history = world.history
    start, stop = history.successes.before(world.request_user[ids], world.request_time[ids])
    valid = torch.arange(max(int((stop - start).max(initial=0)), 1)) < torch.from_numpy(
        (stop - start)[:, None]
    )
    _, index = ragged(start, stop)
    item = np.asarray(history.successes.columns["item"][index], dtype=np.int64)
    codes = world.codes.new_zeros(*valid.shape, world.codes.shape[1])
    codes[valid] = world.codes[torch.from_numpy(item)]
    return codes, valid
