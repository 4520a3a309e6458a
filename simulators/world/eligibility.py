"""Which ads a user may see: active dates and targeting (GPR 2.3).

What an ad asks of a request is a product of conditions, each on one attribute: a day, an age, a
device. Each condition is a table, one row of ads per value; a request's ads are the rows of its
values, joined by "and".

Dims: B requests, N ads, X rows of a table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpr_rl.data.streams import IntArray

ANY = -1
HOURS_PER_DAY = 24
CONTEXT_TARGETS = ("target_hour_start", "target_hour_end", "target_scene")
"""Columns of `ads.parquet` that may be absent."""
_MOST_ROWS = 256
"""Tables are joined into one while it has no more rows than this."""
_LOWEST, _HIGHEST = int(np.iinfo(np.int64).min), int(np.iinfo(np.int64).max)


_RowOf = Callable[[IntArray], IntArray]
_Table = tuple[NDArray[np.bool_], _RowOf]
"""Ads by the value of an attribute, bool [X, N], and the row of each value."""


def _interval_table(low: IntArray, high: IntArray) -> _Table:
    """Return a table over values that ads admit from `low` to `high` (int64 [N], both inclusive).

    Between two neighbouring limits all values are alike, so any integer has a row.
    """
    after = np.where(high == _HIGHEST, high, high + 1)
    limit = np.unique(np.concatenate([low, after]))
    value = np.r_[_LOWEST, limit][:, None]
    admits = (low <= value) & (value <= high)
    return admits, lambda x: np.searchsorted(limit, x, side="right")


def _equality_table(target: IntArray) -> _Table:
    """Return a table over values that ads ask for (int64 [N], ANY for none)."""
    wanted = np.unique(target[target != ANY])
    # the first row is for values that no ad asks for
    admits = np.r_[np.zeros((1, len(target)), bool), wanted[:, None] == target] | (target == ANY)

    def row_of(x: IntArray) -> IntArray:
        place = np.searchsorted(wanted, x)
        found = np.append(wanted, ANY)[place] == x
        return np.where(found, place + 1, 0)

    return admits, row_of


def _hour_table(start: IntArray, end: IntArray) -> _Table:
    """Return a table over hours, 0..23, that ads admit from `start` to `end`, over midnight."""
    hour = np.arange(HOURS_PER_DAY)[:, None]
    inside = (start <= hour) & (hour <= end)
    around = (start > end) & ((start <= hour) | (hour <= end))
    return inside | around, lambda x: x


@dataclass(frozen=True)
class _Factor:
    """One or several attributes' tables, joined: a row for every combination of values."""

    names: tuple[str, ...]
    row_of: tuple[_RowOf, ...]
    size: tuple[int, ...]
    admits: NDArray[np.bool_]  # [product of sizes, N]

    @classmethod
    def of(cls, name: str, table: _Table) -> "_Factor":
        admits, row_of = table
        return cls((name,), (row_of,), (len(admits),), admits)

    def joined(self, other: "_Factor") -> "_Factor":
        admits = (self.admits[:, None] & other.admits).reshape(-1, self.admits.shape[1])
        return _Factor(
            self.names + other.names, self.row_of + other.row_of, self.size + other.size, admits
        )

    def of_requests(self, values: dict[str, IntArray]) -> NDArray[np.bool_]:
        """Return the ads that requests with these values admit, bool [B, N]."""
        index = np.zeros(1, dtype=np.int64)
        for name, row_of, size in zip(self.names, self.row_of, self.size, strict=True):
            index = index * size + row_of(values[name])
        return np.take(self.admits, index, axis=0)


@dataclass(frozen=True)
class Targeting:
    """Targeting columns of N ads as tensors; -1 admits everyone.

    `hour_start` and `hour_end` are both inclusive, 0..23, and may go over midnight (22 to 3).
    """

    gender: Tensor  # int64 [N]
    region: Tensor
    device: Tensor
    age_min: Tensor
    age_max: Tensor
    first_day: Tensor
    last_day: Tensor
    hour_start: Tensor
    hour_end: Tensor
    scene: Tensor

    @classmethod
    def from_ads(cls, ads: pd.DataFrame) -> "Targeting":
        """Read the columns of `ads.parquet`; null admits everyone.

        `target_hour_start`, `target_hour_end` and `target_scene` may be absent.

        Raises:
            ValueError: An hour outside 0..23.
        """

        def column(name: str) -> Tensor:
            if name not in ads and name in CONTEXT_TARGETS:
                return torch.full((len(ads),), ANY)
            unbounded = {"first_day": _LOWEST, "last_day": _HIGHEST}.get(name, ANY)
            values = ads[name].astype("Int64").fillna(unbounded).to_numpy(dtype=np.int64)
            return torch.from_numpy(values.copy())

        for name in CONTEXT_TARGETS[:2]:
            hour = column(name)
            wrong = (hour < ANY) | (hour >= HOURS_PER_DAY)
            if wrong.any():
                raise ValueError(f"{name} must lie in 0..23, got {int(hour[wrong][0])}")
        names = (
            "target_gender",
            "target_region",
            "target_device",
            "target_age_min",
            "target_age_max",
            "first_day",
            "last_day",
            *CONTEXT_TARGETS,
        )
        return cls(*(column(name) for name in names))

    @cached_property
    def uses_context(self) -> bool:
        """Whether any ad asks for an hour or a scene."""
        columns = (self.hour_start, self.hour_end, self.scene)
        return any(bool((column != ANY).any()) for column in columns)

    @cached_property
    def _factors(self) -> list["_Factor"]:
        def bound(column: Tensor, otherwise: int) -> IntArray:
            return np.where(column.numpy() == ANY, otherwise, column.numpy())

        hours = bound(self.hour_start, 0), bound(self.hour_end, HOURS_PER_DAY - 1)
        ages = bound(self.age_min, _LOWEST), bound(self.age_max, _HIGHEST)
        days = self.first_day.numpy(), self.last_day.numpy()
        factors: list[_Factor] = []
        for factor in (
            _Factor.of("gender", _equality_table(self.gender.numpy())),
            _Factor.of("region", _equality_table(self.region.numpy())),
            _Factor.of("device", _equality_table(self.device.numpy())),
            _Factor.of("age", _interval_table(*ages)),
            _Factor.of("day", _interval_table(*days)),
        ):
            size = len(factor.admits) * (len(factors[-1].admits) if factors else _MOST_ROWS + 1)
            if factor.admits.all():
                continue
            if size <= _MOST_ROWS:
                factor = factors.pop().joined(factor)
            factors.append(factor)
        context = (
            _Factor.of("scene", _equality_table(self.scene.numpy())),
            _Factor.of("hour", _hour_table(*hours)),
        )
        return factors + [factor for factor in context if not factor.admits.all()]

    def eligible(
        self,
        day: Tensor,
        age: Tensor,
        gender: Tensor,
        region: Tensor,
        device: Tensor,
        hour: Tensor | None = None,
        scene: Tensor | None = None,
    ) -> Tensor:
        """Return bool [B, N]: ads active on `day` that admit the user (all arguments int64 [B]).

        Args:
            day: Since day 0.
            age: In years.
            gender: As in `users.parquet`, like the next two.
            region: See `gender`.
            device: See `gender`.
            hour: 0..23. None leaves the hours that ads ask for out of account.
            scene: None leaves the scenes that ads ask for out of account.

        Returns:
            May be all False: whoever shows ads says what happens then.
        """
        given = {"day": day, "age": age, "gender": gender, "region": region, "device": device}
        given |= {} if hour is None else {"hour": hour}
        given |= {} if scene is None else {"scene": scene}
        values = {name: value.numpy() for name, value in given.items()}
        eligible: NDArray[np.bool_] | None = None
        for factor in self._factors:
            if factor.names[-1] in values:
                rows = factor.of_requests(values)
                eligible = rows if eligible is None else np.logical_and(eligible, rows, eligible)
        if eligible is None:  # no ad asks for anything
            eligible = np.ones((len(day), len(self.gender)), dtype=np.bool_)
        return torch.from_numpy(eligible)


@dataclass(frozen=True)
class Availability:
    """Legal ads from a table, for worlds whose logs say what could be shown where and when."""

    table: Tensor  # bool [G, N], one row per place and time
    row: Tensor  # int64 [R], the row of each request

    def eligible(self, request_id: Tensor) -> Tensor:
        """Return bool [B, N] of requests `request_id` (int64 [B])."""
        return self.table[self.row[request_id]]
