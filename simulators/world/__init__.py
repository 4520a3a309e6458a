"""A world: users, ads, requests, logs, their tables on disk and what a request shows.

Imports `gpr_rl` and `simulators.rewards`; knows neither rankers nor how a world was made.
Start with `world.World`; `history` and `features` build what a request shows.
"""

from simulators.world.info import WorldError, WorldInfo
from simulators.world.parts import WorldParts
from simulators.world.world import World

__all__ = ["World", "WorldError", "WorldInfo", "WorldParts"]
