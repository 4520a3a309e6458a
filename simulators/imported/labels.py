"""Labels as small numbers: groups of items, attributes of users, scenes of requests.

Dims: n values, U users.
"""

import numpy as np
import pandas as pd

from gpr_rl.data.streams import IntArray
from simulators.imported.days import DaySplit
from simulators.imported.rows import UNKNOWN, Log
from simulators.world.history import DAY_S
from simulators.world.world import age_bucket

NUM_ACTIVITY_GROUPS = 5
_OWN_COLUMNS = ("gender", "region", "device")
_MONDAY_OF_1970 = 3  # 1970 began on a Thursday


def group_numbers(labels: pd.Series, size: int) -> IntArray:
    """Return 1, 2 ... for the `size` most frequent labels, 0 for the others and null, int64 [n].

    Ties go to the lower label.
    """
    count = labels.value_counts(sort=False).sort_index()
    largest = count.sort_values(ascending=False, kind="stable").index[:size]
    return largest.get_indexer(labels).astype(np.int64) + 1


def label_codes(labels: pd.Series, size: int) -> tuple[IntArray, int]:
    """Return codes in the order of the labels, int64 [n], and how many there may be.

    Null has code 0. The `size` most frequent labels get a code of their own, the others share the
    last one.
    """
    count = labels.value_counts(sort=False).sort_index()
    if len(count) > size:
        count = count.sort_values(ascending=False, kind="stable")[:size].sort_index()
    code = count.index.get_indexer(labels).astype(np.int64) + 1
    rare = (code == 0) & labels.notna().to_numpy()
    return np.where(rare, len(count) + 1, code), len(count) + 1 + bool(rare.any())


def make_users(
    known: pd.DataFrame, log: Log, days: DaySplit, num_labels: int
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return the users of a log, and how many codes each of their attributes may have.

    Columns are user_id, source_id (the log's own), those of `World` and attributes as codes; age is
    in years, activity that of the log days, and what is not known 0.
    """
    attributes = known.set_index("user_id").reindex(log.source_user)
    frame = pd.DataFrame({"user_id": np.arange(len(log.source_user)), "source_id": log.source_user})
    sizes: dict[str, int] = {}
    age = pd.to_numeric(attributes["age"]) if "age" in attributes else pd.Series([np.nan])
    frame["age"] = 0
    if age.notna().any():
        frame["age"] = age.fillna(0).to_numpy(dtype=np.int64)
        frame["age_bucket"] = np.where(age.isna(), 0, age_bucket(age.fillna(0)) + 1)
        sizes["age_bucket"] = int(frame["age_bucket"].max()) + 1
    for name in dict.fromkeys((*_OWN_COLUMNS, *attributes.columns.difference(["age"], sort=False))):
        if name not in attributes or attributes[name].isna().all():
            if name in _OWN_COLUMNS:
                frame[name] = 0
            continue
        frame[name], sizes[name] = label_codes(attributes[name], num_labels)
    logged = log.rows["user_id"].to_numpy()[log.day < days.num_log_days]
    rows = np.bincount(logged, minlength=len(frame))
    rank = np.argsort(np.argsort(rows, kind="stable"), kind="stable")
    frame["activity"] = rows / days.num_log_days
    frame["activity_group"] = rank * NUM_ACTIVITY_GROUPS // len(frame)
    sizes["activity_group"] = NUM_ACTIVITY_GROUPS
    return frame, sizes


def number_scenes(requests: pd.DataFrame, log: Log, num_labels: int) -> tuple[IntArray, int]:
    """Return the scene of each request, int64 [n], and how many there are.

    It is the log's own label where no places are known. Otherwise it is what is known when a visit
    begins: weekday or weekend and, where places are known, the same label (place, if there are no
    labels) as last time or another. `num_labels` labels get a number each.
    """
    if len(log.scenes) and not len(log.places):
        scene = requests["scene"]
        return label_codes(scene.where(scene != UNKNOWN).astype("Int64"), num_labels)
    day = log.first_day + requests["timestamp"].to_numpy() // DAY_S
    weekend = (day + _MONDAY_OF_1970) % 7 >= 5
    if not len(log.places):
        return weekend.astype(np.int64), 2
    user, time = requests["user_id"].to_numpy(), requests["timestamp"].to_numpy()
    where = requests["scene" if len(log.scenes) else "place"].to_numpy()
    order = np.lexsort((where, time, user))
    elsewhere = np.zeros(len(requests), dtype=np.int64)
    moved = (where[order][1:] != where[order][:-1]) & (user[order][1:] == user[order][:-1])
    elsewhere[order[1:]] = moved
    return 2 * weekend + elsewhere, 4
