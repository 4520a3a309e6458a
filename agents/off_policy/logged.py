"""Logged feedback with propensities: what was shown, with which probability, and what came of it.

A log is made by `rollouts`, written as Parquet and handed over in Open Bandit style.

Parquet schema (one row per shown ad, all columns filled):

============  ===========  ======================================================================
column        type         meaning
============  ===========  ======================================================================
request_id    int64        the world's request
user_id       int64
timestamp     int64        seconds since the world's day 0
ad_id         int64        what was shown
codes         list<int64>  its semantic ID, L codes
position      int64        0 is the top
propensity    double       probability that the logging policy gave this ad at this place, given
                           the ads above it in the slate; in (0, 1]
reward        double       in the reward's own unit (revenue: eCPM)
click         int64        1 or 0; -1: nothing was drawn, the reward is an expectation
conversion    int64        1 or 0; -1 likewise
slate_id      int64        rows of one slate share it, top to bottom
============  ===========  ======================================================================

Dims: n rows, N ads, L levels, d embedding width.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from agents.off_policy.estimators import refuse
from gpr_rl.files import complete_file
from simulators.world import World

UNKNOWN = -1
"""Click and conversion of a row whose reward is an expectation."""
_FLOATS = ("propensity", "reward")


class LogError(ValueError):
    """A log that can't be read or isn't one; the message names the file or the row."""


@dataclass(frozen=True, kw_only=True)
class LoggedFeedback:
    """n logged rows; columns as in the module's docstring.

    Raises:
        LogError: Columns of different lengths, a propensity outside (0, 1], a reward that is not
            finite; names the row.
    """

    request_id: Tensor  # int64 [n]
    user_id: Tensor  # int64 [n]
    timestamp: Tensor  # int64 [n]
    ad_id: Tensor  # int64 [n]
    codes: Tensor  # int64 [n, L]
    position: Tensor  # int64 [n]
    propensity: Tensor  # float64 [n]
    reward: Tensor  # float64 [n]
    click: Tensor  # int64 [n]
    conversion: Tensor  # int64 [n]
    slate_id: Tensor  # int64 [n]

    def __post_init__(self) -> None:
        for name in _COLUMNS:
            rows = len(getattr(self, name))
            if rows != len(self):
                raise LogError(f"column {name!r} has {rows} rows, request_id has {len(self)}")
        impossible = ~((self.propensity > 0) & (self.propensity <= 1))
        refuse(impossible, self.propensity, "propensity", "lie in (0, 1]", LogError)
        refuse(~self.reward.isfinite(), self.reward, "reward", "be finite", LogError)

    def __len__(self) -> int:
        return len(self.request_id)

    def to_parquet(self, path: str | Path) -> None:
        """Write the log, all or nothing; its folder is made if it is missing."""
        path = Path(path)
        columns = {name: getattr(self, name).numpy() for name in _COLUMNS if name != "codes"}
        columns["codes"] = pa.array(list(self.codes.numpy()), type=pa.list_(pa.int64()))
        path.parent.mkdir(parents=True, exist_ok=True)
        with complete_file(path) as temporary:
            pq.write_table(pa.table({name: columns[name] for name in _COLUMNS}), temporary)

    def to_open_bandit(self, world: World) -> dict[str, Any]:
        """Return the log as Open Bandit's `BanditFeedback` (numpy arrays).

        Keys: n_rounds, n_actions, context [n, A + C] (user attributes, then the request's),
        action_context [N, d] (the ads' embeddings), action, position, reward, pscore; for slates
        of several ads also slate_id and pscore_cascade, and pscore is then that of the slate.
        """
        ids = self.request_id.numpy()
        user = world.user_attributes[self.user_id.numpy()]
        feedback = {
            "n_rounds": len(self),
            "n_actions": world.num_ads,
            "context": np.concatenate([user, world.request_context[ids]], axis=1),
            "action_context": world.item_embedding[: world.num_ads].numpy(),
            "action": self.ad_id.numpy(),
            "position": self.position.numpy(),
            "reward": self.reward.numpy(),
            "pscore": self.propensity.numpy(),
        }
        slates = pd.Series(self.propensity.numpy()).groupby(self.slate_id.numpy())
        if slates.ngroups < len(self):
            feedback["slate_id"] = self.slate_id.numpy()
            feedback["pscore_cascade"] = slates.cumprod().to_numpy()
            feedback["pscore"] = slates.transform("prod").to_numpy()
        return feedback


_COLUMNS = tuple(field.name for field in fields(LoggedFeedback))


def read_parquet(path: str | Path) -> LoggedFeedback:
    """Read what `LoggedFeedback.to_parquet` wrote.

    Raises:
        LogError: No Parquet file, columns missing or with nulls, or values that no log can have;
            names the file.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise LogError(f"{path} can't be read as Parquet: {reason}") from error
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise LogError(f"{path} is no log of feedback: it has no column {', '.join(missing)}")
    try:
        return LoggedFeedback(**{name: _column(table, name) for name in _COLUMNS})
    except LogError as error:
        raise LogError(f"{path}: {error}") from error


def _column(table: pa.Table, name: str) -> Tensor:
    column = table[name].combine_chunks()
    if column.null_count:
        raise LogError(f"column {name!r} has {column.null_count} nulls")
    try:
        values = np.stack(column.to_numpy(zero_copy_only=False)) if len(column) else np.empty(0)
        kind = np.float64 if name in _FLOATS else np.int64
        return torch.from_numpy(values.astype(kind, casting="same_kind"))
    except (TypeError, ValueError) as error:
        raise LogError(f"column {name!r} can't be read: {error}") from error
