"""Which ads a user may see: active dates and targeting (GPR 2.3).

What an ad asks of a request is a product of conditions, each on one attribute: a day, an age, a
device. Each condition is a table, one row of ads per value; a request's ads are the rows of its
values, joined by "and".

Dims: B requests, N ads, X rows of a table.
"""

from dataclasses import dataclass

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
_EQUAL = ("gender", "region", "device")
"""Attributes of which an ad asks for one value."""
_MOST_ROWS = 256
"""Tables are joined into one while it has no more rows than this."""
_LOWEST, _HIGHEST = int(np.iinfo(np.int64).min), int(np.iinfo(np.int64).max)


@dataclass(frozen=True)
class _Condition:
    """What ads ask of some attributes, by every combination of values that make a difference."""

    names: tuple[str, ...]
    limits: tuple[IntArray, ...]
    """Per attribute, the rising values at which another ad admits or refuses; between two of them
    all values are alike."""
    admits: NDArray[np.bool_]
    """[X, N]"""

    @classmethod
    def within(cls, name: str, low: IntArray, high: IntArray) -> "_Condition":
        """Return the condition that a value lies from `low` to `high` (int64 [N], inclusive)."""
        limit = np.unique(np.r_[low, high[high < _HIGHEST] + 1])
        limit = limit[limit > _LOWEST]
        value = np.r_[_LOWEST, limit][:, None]
        return cls((name,), (limit,), (low <= value) & (value <= high))

    @classmethod
    def hours(cls, start: IntArray, end: IntArray) -> "_Condition":
        """Return the condition on an hour, 0..23, from `start` to `end`, over midnight."""
        hour = np.arange(HOURS_PER_DAY)[:, None]
        inside = (start <= hour) & (hour <= end)
        around = (start > end) & ((start <= hour) | (hour <= end))
        return cls(("hour",), (hour[1:, 0],), inside | around)

    def joined(self, other: "_Condition") -> "_Condition":
        admits = (self.admits[:, None] & other.admits).reshape(-1, self.admits.shape[1])
        return _Condition(self.names + other.names, self.limits + other.limits, admits)

    def row(self, values: dict[str, IntArray]) -> IntArray:
        """Return the row of requests with these values, int64 [B]."""
        index = np.zeros(1, dtype=np.int64)
        for name, limit in zip(self.names, self.limits, strict=True):
            index = index * (len(limit) + 1) + np.searchsorted(limit, values[name], side="right")
        return index


@dataclass(frozen=True)
class Targeting:
    """What N ads ask of the day, the user and, some of them, of the hour and the scene."""

    num_ads: int
    conditions: tuple[_Condition, ...]
    uses_context: bool
    """Whether any ad asks for an hour or a scene."""

    @classmethod
    def from_ads(cls, ads: pd.DataFrame) -> "Targeting":
        """Read the columns of `ads.parquet`; null admits everyone, and so does -1 as a target.

        Hours are both inclusive and may go over midnight (22 to 3). `target_hour_start`,
        `target_hour_end` and `target_scene` may be absent.

        Raises:
            ValueError: An hour outside 0..23.
        """

        def column(name: str, otherwise: int) -> IntArray:
            """Return a column with `otherwise` where nothing is asked for."""
            if name not in ads and name in CONTEXT_TARGETS:
                return np.full(len(ads), otherwise)
            values = ads[name].astype("Int64")
            asked = values.mask(values == ANY) if name.startswith("target_") else values
            return asked.fillna(otherwise).to_numpy(dtype=np.int64)

        for name in CONTEXT_TARGETS[:2]:
            hour = column(name, 0)
            wrong = (hour < 0) | (hour >= HOURS_PER_DAY)
            if wrong.any():
                raise ValueError(f"{name} must lie in 0..23, got {int(hour[wrong][0])}")

        def within(attribute: str, low: str, high: str) -> _Condition:
            return _Condition.within(attribute, column(low, _LOWEST), column(high, _HIGHEST))

        conditions: list[_Condition] = []
        for condition in (
            *(within(name, f"target_{name}", f"target_{name}") for name in _EQUAL),
            within("age", "target_age_min", "target_age_max"),
            within("day", "first_day", "last_day"),
        ):
            rows = len(condition.admits)
            if condition.admits.all():
                continue
            if conditions and rows * len(conditions[-1].admits) <= _MOST_ROWS:
                condition = conditions.pop().joined(condition)
            conditions.append(condition)
        start, end = column(CONTEXT_TARGETS[0], 0), column(CONTEXT_TARGETS[1], HOURS_PER_DAY - 1)
        context = within("scene", *CONTEXT_TARGETS[2:] * 2), _Condition.hours(start, end)
        conditions += [condition for condition in context if not condition.admits.all()]
        asked = any((column(name, ANY) != ANY).any() for name in CONTEXT_TARGETS)
        return cls(len(ads), tuple(conditions), asked)

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

        Days are counted from 0, ages are in years, hours 0..23, the others as in `users.parquet`.
        Without `hour` or `scene` what ads ask of it is left out of account. A row may be all
        False: whoever shows ads says what happens then.
        """
        given = {"day": day, "age": age, "gender": gender, "region": region, "device": device}
        given |= {} if hour is None else {"hour": hour}
        given |= {} if scene is None else {"scene": scene}
        values = {name: value.numpy() for name, value in given.items()}
        asked = [c for c in self.conditions if c.names[-1] in values]
        return self._joined([(c, c.row(values)) for c in asked], len(day))

    def signature(self, **values: Tensor) -> Tensor:
        """Return which combination of what ads ask for a request is, int64 [B].

        Requests with one number admit the same ads. The arguments are those of `eligible`, all of
        them.
        """
        arrays = {name: value.numpy() for name, value in values.items()}
        number = np.zeros(len(values["day"]), dtype=np.int64)
        for condition in self.conditions:
            number = number * len(condition.admits) + condition.row(arrays)
        return torch.from_numpy(number)

    def ads_of(self, signature: Tensor) -> Tensor:
        """Return the ads of signatures (int64 [S]), bool [S, N]."""
        left, rows = signature.numpy(), []
        for condition in reversed(self.conditions):
            left, row = np.divmod(left, len(condition.admits))
            rows.append((condition, row))
        return self._joined(rows, len(left))

    def _joined(self, rows: list[tuple[_Condition, IntArray]], size: int) -> Tensor:
        """Return what conditions admit at these rows, bool [B, N]."""
        eligible: NDArray[np.bool_] | None = None
        for condition, row in rows:
            admitted = np.take(condition.admits, row, axis=0)
            eligible = (
                admitted if eligible is None else np.logical_and(eligible, admitted, eligible)
            )
        if eligible is None:  # no ad asks for anything
            eligible = np.ones((size, self.num_ads), dtype=np.bool_)
        return torch.from_numpy(eligible)


@dataclass(frozen=True)
class Availability:
    """Legal ads from a table, for worlds whose logs say what could be shown where and when."""

    table: Tensor  # bool [G, N], one row per place and time
    row: Tensor  # int64 [R], the row of each request

    def eligible(self, request_id: Tensor) -> Tensor:
        """Return bool [B, N] of requests `request_id` (int64 [B])."""
        return self.table[self.row[request_id]]

    def ads_of(self, signature: Tensor) -> Tensor:
        """Return the rows of the table with these numbers, bool [S, N]."""
        return self.table[signature]
