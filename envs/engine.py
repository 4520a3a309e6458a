"""What the Gymnasium, vector and TorchRL environments drive: B rows of one rule book.

Dims: B rows (independent environments), N ads, L levels, V codes per level.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from envs.render import AuctionView
from simulators.rewards import RewardMix
from simulators.world import World

Arrays = dict[str, Any]
"""Arrays [B, ...] by key; `components` holds a dictionary of its own."""


@runtime_checkable
class Engine(Protocol):
    """Rules and state of B rows; row i depends on its own seed and actions alone.

    The adapters (`AdRequestEnv`, `AdDayEnv`, `VectorEnv`, `TorchEnv`) hold no rules. Arrays that
    an engine hands out are its own state: adapters copy what they pass on.
    """

    world: World
    num_rows: int
    reward: RewardMix

    @property
    def awaiting(self) -> NDArray[np.bool_]:
        """Bool [B], True where a choice is due; False before the first reset and after an end."""
        ...

    @property
    def terminated(self) -> NDArray[np.bool_]:
        """Bool [B], the episode ended by its own rules."""
        ...

    @property
    def truncated(self) -> NDArray[np.bool_]:
        """Bool [B], the episode was cut off (midnight)."""
        ...

    @property
    def legal_mask(self) -> NDArray[np.bool_]:
        """Bool [B, V], what may be chosen; all True where no choice is due."""
        ...

    @property
    def reported(self) -> NDArray[np.bool_]:
        """Bool [B], True where the last step ended a request."""
        ...

    def seed(self, seed: NDArray[np.int64], rows: NDArray[np.bool_] | None = None) -> None:
        """Start the random streams of `rows` (bool [B], None: all) anew; `seed` is int64 [B]."""

    def reset(
        self, rows: NDArray[np.bool_] | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        """Begin the next episode of `rows` (bool [B], None: all); the others stay as they are."""

    def step(
        self, action: NDArray[np.int64], rows: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """Choose the next code of `rows` and return rewards [B]; 0 where no choice is due."""

    def observation(self) -> dict[str, NDArray]:
        """Return the entries of `envs.spaces.observation_fields` by key, [B, ...], no mask."""

    def info(self) -> Arrays:
        """Return what every row's `info` has, [B] each, without `action_mask`."""

    def report(self) -> Arrays:
        """Return what `info` adds at the end of a request, [B] each; see `reported`."""

    def view(self, row: int) -> AuctionView:
        """Return the last auction of a row, for `render`."""

    def eligible(self) -> NDArray[np.bool_]:
        """Return bool [B, N], the ads that each row's user may see now."""
