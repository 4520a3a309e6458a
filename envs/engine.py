"""What the Gymnasium, vector and TorchRL environments drive: B rows of one rule book.

Dims: B rows (independent environments), K rows that share a request, N ads, L levels, V codes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from envs.arguments import flag, integer, one_of, positive_integer, real
from envs.choices import Choices
from envs.spaces import IDENTITY
from simulators.make import load_world
from simulators.rewards import RewardMix, RewardSpec
from simulators.world import World

Arrays = dict[str, Any]
"""Arrays [B, ...] by key; `components` holds a dictionary of its own."""
SPLIT_ROOTS = {"train": 0, "validation": 1, "test": 2}
"""Roots of the draws, so that equal seeds on two splits share no luck. The environment's own seed
is a key of the draw: rows may have different ones."""


class Settings(TypedDict, total=False):
    """What every environment takes, beside its world and how many rows it has."""

    reward: RewardSpec
    """See `simulators.rewards.RewardMix.of`; default `final_value`."""
    split: str
    """`train` (the default), `validation` or `test`."""
    illegal_reward: float
    """Reward of an illegal code; default -1."""
    candidates: int
    """K rows that share a request, in vector and TorchRL environments; default 1. See `Engine`."""
    strict: bool
    """Raise `IllegalActionError` at an illegal code instead."""
    world_seed: int
    """Of a named world; default 0."""


class Engine(ABC):
    """Rules and state of B rows; row i depends on its own seed and actions alone.

    With `candidates` K > 1, K neighbouring rows (a group) propose ads for one request: they have
    one seed, begin together and end together. A row whose own path ended early, by an illegal
    code, awaits nothing until the others' have.

    The adapters (`AdRequestEnv`, `AdDayEnv`, `VectorEnv`, `TorchEnv`) hold no rules. Arrays that
    an engine hands out are its own state: adapters copy what they pass on.

    Attributes:
        terminated: bool [B], the episode ended by its own rules.
        truncated: bool [B], the episode was cut off (midnight).
        reported: bool [B], True where the last step ended a request.
    """

    candidates = 1
    """K, rows that share a request."""
    blank: Mapping[str, Any]
    """What a report holds between the ends of requests, beside `components`."""

    def __init__(
        self,
        world: str | Path | World,
        num_rows: int,
        *,
        candidates: int = 1,
        reward: RewardSpec = None,
        split: str = "train",
        illegal_reward: float = -1.0,
        strict: bool = False,
        world_seed: int = 0,
    ) -> None:
        """Load the world (once per process); call `seed`, then `reset`.

        Raises:
            ValueError: An argument out of range or of another kind.
        """
        self.world = load_world(world, seed=integer("world_seed", world_seed))
        self.num_rows = num_rows
        self.candidates = positive_integer("candidates", candidates)
        if num_rows % self.candidates:
            raise ValueError(
                f"the number of rows must be a multiple of candidates, {candidates}, got {num_rows}"
            )
        self.reward = RewardMix.of(reward)
        self.split = one_of("split", split, tuple(SPLIT_ROOTS))
        self.illegal_reward = real("illegal_reward", illegal_reward)
        if not math.isfinite(self.illegal_reward):
            raise ValueError(f"illegal_reward must be finite, got {self.illegal_reward}")
        self.strict = flag("strict", strict)
        self._choices = Choices(self.world.trie, num_rows)
        flags = np.zeros((4, num_rows), dtype=np.bool_)
        self.terminated, self.truncated, self.reported, self._illegal = flags
        self._seed, self._episode = np.zeros((2, num_rows), dtype=np.int64)
        self._identity = {key: np.zeros(num_rows, dtype=np.int64) for key in IDENTITY}
        self._report: Arrays = {key: np.full(num_rows, value) for key, value in self.blank.items()}
        self._report["components"] = {
            key: np.zeros(num_rows, dtype=np.float32) for key in self.reward.functions
        }

    def of_group(self, name: str, values: NDArray) -> NDArray:
        """Return what the rows of each group have in common, [B / K, ...].

        Raises:
            ValueError: They differ; says in which group.
        """
        if self.candidates == 1:
            return values
        groups = values.reshape(-1, self.candidates, *values.shape[1:])
        differs = (groups != groups[:, :1]).reshape(len(groups), -1).any(1)
        if differs.any():
            group = int(differs.argmax())
            raise ValueError(
                f"{name} must be the same for the {self.candidates} rows of a request, got "
                f"{groups[group].tolist()} from row {group * self.candidates} on"
            )
        return groups[:, 0]

    def whole_groups(self, rows: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        """Return `rows`, bool [B]; ValueError where they hold a part of a group."""
        if rows is not None:
            self.of_group("whether a row is reset", rows)
        return rows

    def by_row(self, values: NDArray) -> NDArray:
        """Return [B / K, ...] for each row of the groups, [B, ...]."""
        return values if self.candidates == 1 else np.repeat(values, self.candidates, axis=0)

    @property
    def legal_mask(self) -> NDArray[np.bool_]:
        """Bool [B, V], what may be chosen; all True where no choice is due."""
        return self._choices.legal_mask

    def seed(self, seed: NDArray[np.int64], rows: NDArray[np.bool_] | None = None) -> None:
        """Start the random streams of `rows` (bool [B], None: all) anew; `seed` is int64 [B].

        Raises:
            ValueError: The rows of a group would have different seeds.
        """
        chosen = slice(None) if rows is None else rows
        seeds = self._seed.copy()
        seeds[chosen] = np.asarray(seed)[chosen]
        self.of_group("seed", seeds)
        self._seed = seeds
        self._episode[chosen] = 0

    @abstractmethod
    def reset(
        self, rows: NDArray[np.bool_] | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        """Begin the next episode of `rows` (bool [B], None: all); the others stay as they are.

        Raises:
            ValueError: An option that is wrong, or a part of a group.
        """

    @abstractmethod
    def step(
        self, action: NDArray[np.int64], rows: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """Choose the next code of `rows` and return rewards [B]; 0 where no choice is due.

        Raises:
            ValueError: An action outside [0, V).
            IllegalActionError: An illegal action, if `strict`; nothing has changed then.
        """

    @abstractmethod
    def shown(self) -> dict[str, NDArray]:
        """Return the request tensors of observations by key, [B, ...]."""

    def observation(self) -> dict[str, NDArray]:
        """Return the entries of `envs.spaces.observation_fields` by key, [B, ...], no mask."""
        return self.shown() | {"prefix": self._choices.prefix, "level": self._choices.level}

    @abstractmethod
    def info(self) -> Arrays:
        """Return what every row's `info` has, [B] each, without `action_mask`."""

    def report(self) -> Arrays:
        """Return what `info` adds at the end of a request, [B] each; see `reported`."""
        return self._report

    def _blank_report(self, rows: NDArray[np.bool_] | slice) -> None:
        for key, value in self.blank.items():
            self._report[key][rows] = value
        for component in self._report["components"].values():
            component[rows] = 0.0

    def _write_report(
        self, index: NDArray[np.int64], said: dict[str, Tensor], components: dict[str, Tensor]
    ) -> None:
        """Write what is said of rows `index`, [R] or [R, 1] each."""
        for store, values in ((self._report, said), (self._report["components"], components)):
            for key, value in values.items():
                store[key][index] = value.detach().numpy().reshape(len(index))

    @abstractmethod
    def view(self, row: int) -> str:
        """Return the last auction of a row as a table of text."""

    @abstractmethod
    def eligible(self) -> NDArray[np.bool_]:
        """Return bool [B, N], the ads that each row's user may see now."""


def checked_options(options: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    """Return the options of a reset; ValueError where there is another than `name`."""
    options = options or {}
    if set(options) - {name}:
        raise ValueError(f"options may hold {name!r} only, got {sorted(options)}")
    return options
