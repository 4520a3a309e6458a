"""Which ads a user may see: active dates and targeting (GPR 2.3).

Dims: B requests, N ads.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

ANY = -1


@dataclass(frozen=True)
class Targeting:
    """Targeting columns of N ads as tensors; -1 admits everyone."""

    gender: Tensor  # int64 [N]
    region: Tensor
    device: Tensor
    age_min: Tensor
    age_max: Tensor
    first_day: Tensor
    last_day: Tensor

    @classmethod
    def from_ads(cls, ads: pd.DataFrame) -> "Targeting":
        """Read the columns of `ads.parquet`; null admits everyone."""

        def column(name: str) -> Tensor:
            values = ads[name].astype("Int64").fillna(ANY).to_numpy(dtype=np.int64)
            return torch.from_numpy(values.copy())

        names = (
            "target_gender",
            "target_region",
            "target_device",
            "target_age_min",
            "target_age_max",
            "first_day",
            "last_day",
        )
        return cls(*(column(name) for name in names))

    def eligible(
        self, day: Tensor, age: Tensor, gender: Tensor, region: Tensor, device: Tensor
    ) -> Tensor:
        """Return bool [B, N]: ads active on `day` that admit the user (all arguments int64 [B])."""

        def admits(target: Tensor, value: Tensor) -> Tensor:
            return (target == ANY) | (target == value[:, None])

        active = (self.first_day <= day[:, None]) & (day[:, None] <= self.last_day)
        old_enough = self.age_min <= age[:, None]  # ANY is below every age
        young_enough = (self.age_max == ANY) | (age[:, None] <= self.age_max)
        return (
            active
            & old_enough
            & young_enough
            & admits(self.gender, gender)
            & admits(self.region, region)
            & admits(self.device, device)
        )


@dataclass(frozen=True)
class Availability:
    """Legal ads from a table, for worlds whose logs say what could be shown where and when."""

    table: Tensor  # bool [G, N], one row per place and time
    row: Tensor  # int64 [R], the row of each request

    def eligible(self, request_id: Tensor) -> Tensor:
        """Return bool [B, N] of requests `request_id` (int64 [B])."""
        return self.table[self.row[request_id]]
