"""What a world is made of: tables, semantic IDs, the requests of its log, frozen rankers.

Dims: N ads, M organic items, d embedding width, L levels, R logged requests, G places and times.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Bool, Float, Int
from torch import Tensor

from simulators.world.features import Features, WorldRankers, no_rankers
from simulators.world.history import LoggedRequests
from simulators.world.info import WorldInfo

SCORES = ("pctr", "pcvr", "ecpm", "final_value", "alpha", "reward_scale", "ad_value")
"""What `WorldParts.logged` holds of a world with rankers."""


@dataclass(frozen=True, kw_only=True)
class WorldParts:
    """What a world is made of."""

    info: WorldInfo
    users: pd.DataFrame
    ads: pd.DataFrame
    organic: pd.DataFrame
    events: pd.DataFrame
    item_embedding: Float[Tensor, "items d"]
    """Of ads, then of organic items, like `item_codes`."""
    item_codes: Int[Tensor, "items L"]
    availability: Bool[Tensor, "G N"] | None = None
    """Legal ads by place and time, for worlds whose logs say what could be shown."""
    directory: Path | None = None
    rankers: WorldRankers = no_rankers
    """The reward simulator."""
    logged: Mapping[str, Tensor] = field(default_factory=dict)
    """What the rankers say of the log: pctr, pcvr, ecpm, final_value [R] of the logged ads, alpha
    [2], reward_scale and ad_value [N]."""
    ranker_card: dict[str, Any] = field(default_factory=dict)
    """The rankers' grades."""
    requests: LoggedRequests | None = None
    """Who asks; None: the requests of the log."""
    features: Features | None = None
    """What the rankers take; None: what the users did before."""
