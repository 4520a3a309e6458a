"""The requests of a log: who asked, when and where, and what was shown.

Dims: R requests.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from gpr_rl.data.streams import IntArray
from simulators.world.history import DAY_S

HOUR_S = 3_600


@dataclass(frozen=True)
class LoggedRequests:
    """R requests in order of time; `ad` and `action` are of the logged ones only."""

    user: IntArray
    """int64 [R]"""
    time: IntArray
    """int64 [R], seconds since day 0"""
    context: IntArray
    """int64 [R, 4]: scene, position, hour of day, device"""
    ad: Int[Tensor, " R"]
    action: Int[Tensor, " R"]
    availability: Int[Tensor, " R"] | None = None
    """The row of `Availability.table`, for worlds whose logs say what could be shown"""

    @classmethod
    def of(cls, events: pd.DataFrame, users: pd.DataFrame) -> "LoggedRequests":
        """Return the impressions among events."""
        shown = events.loc[events["kind"] == 1].reset_index(drop=True)
        user, time = shown["user_id"].to_numpy(), shown["timestamp"].to_numpy()
        place = [shown["scene"].to_numpy(), shown["position"].to_numpy()]
        place += [time % DAY_S // HOUR_S, users["device"].to_numpy()[user]]
        context = np.stack(place, axis=1).astype(np.int64)
        ad, action, *row = (
            torch.from_numpy(shown[name].to_numpy(copy=True))
            for name in ("item_id", "action", "availability")
            if name in shown
        )
        return cls(user, time, context, ad, action, *row)
