"""What was known about a user strictly before a moment: streams, counts, recent positives.

A batch of requests is answered by ragged gathers and one histogram; no loop over requests.

Dims: B moments (a user and a time each), S recent items, L levels, V codes, G groups.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gpr_rl.data.streams import IntArray, Stream, ragged
from gpr_rl.schema import Action

DAY_S = 86_400
COUNT_KINDS = ("impressions", "clicks", "conversions", "views", "recent_impressions")


class History:
    """Strictly-past views of an event table.

    Args:
        events: user_id, timestamp, kind (0 organic, 1 ad), item_id, action.
        group: int64 [N + M, 3], vertical, category and advertiser of every item (ads, then
            organic), as disjoint group numbers below `num_groups`.
        num_users: U.
        num_ads: N.
    """

    def __init__(
        self, events: pd.DataFrame, group: IntArray, num_users: int, num_ads: int
    ) -> None:
        item = events["item_id"].to_numpy() + np.where(events["kind"] == 1, 0, num_ads)
        events = events.assign(item=item)
        self.group = group
        self.num_groups = int(group.max()) + 1
        self.events = Stream.build(events, ("timestamp", "item", "action"), num_users)
        action = events["action"].to_numpy()
        positive = np.isin(action, (Action.VIEW, Action.CLICK, Action.CONVERSION))
        self.positives = Stream.build(events[positive], ("item", "action", "timestamp"), num_users)
        bought = np.isin(action, (Action.CLICK, Action.CONVERSION))
        self.successes = Stream.build(events[bought], ("item",), num_users)

    def counts(self, user_id: IntArray, timestamp: IntArray) -> NDArray[np.float32]:
        """Return counts by group of events before each moment, float32 [B, G, 5].

        The last axis is `COUNT_KINDS`: a click is also an impression, a conversion also a click;
        recent impressions are those of the moment's day and the day before it.
        """
        row, index = ragged(*self.events.before(user_id, timestamp))
        columns = self.events.columns
        action = columns["action"][index]
        since = (timestamp // DAY_S - 1) * DAY_S
        recent = (columns["timestamp"][index] >= since[row]) & (action != Action.VIEW)
        kind = (action - Action.VIEW) + 4 * recent  # view, impression, click, conversion, recent ...
        group = self.group[columns["item"][index]]
        flat = ((row * self.num_groups)[:, None] + group) * 8 + kind[:, None]
        shape = (len(user_id), self.num_groups, 8)
        table = np.bincount(flat.ravel(), minlength=int(np.prod(shape))).reshape(shape)
        view, old, recent_ = table[..., 0], table[..., 1:4], table[..., 5:8]
        total = old + recent_
        at_least = total[..., ::-1].cumsum(-1)[..., ::-1]
        return np.concatenate(
            [at_least, view[..., None], recent_.sum(-1)[..., None]], axis=-1
        ).astype(np.float32)

    def popularity(
        self,
        user_id: IntArray,
        timestamp: IntArray,
        codes: IntArray,
        num_codes: int,
    ) -> NDArray[np.float32]:
        """Return P_l(t) of GPR Eq. 6: share of past clicks and conversions per code, [B, L, V].

        Args:
            user_id: int64 [B].
            timestamp: int64 [B]; only events strictly before it count.
            codes: int64 [N, L] of the ads.
            num_codes: V.

        Returns:
            float32 [B, L, V]; 0 everywhere for a user without a past success.
        """
        row, index = ragged(*self.successes.before(user_id, timestamp))
        path = codes[self.successes.columns["item"][index]]
        levels = codes.shape[1]
        flat = (row[:, None] * levels + np.arange(levels)) * num_codes + path
        shape = (len(user_id), levels, num_codes)
        table = np.bincount(flat.ravel(), minlength=int(np.prod(shape))).reshape(shape)
        total = np.maximum(table.sum(-1, keepdims=True), 1)
        return (table / total).astype(np.float32)
