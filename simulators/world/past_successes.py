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
    row, index = ragged(start, stop)
    num_past = stop - start
    place = np.arange(len(row)) - np.repeat(np.cumsum(num_past) - num_past, num_past)
    shape = (len(ids), max(int(num_past.max(initial=0)), 1))
    codes = torch.zeros(*shape, world.codes.shape[1], dtype=torch.int64)
    valid = torch.zeros(shape, dtype=torch.bool)
    item = torch.from_numpy(np.asarray(history.successes.columns["item"][index], dtype=np.int64))
    rows, places = torch.from_numpy(row), torch.from_numpy(place)
    codes[rows, places] = world.codes[item]
    valid[rows, places] = True
    return codes, valid
