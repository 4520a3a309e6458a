"""The requests of a log, and what was known about a user strictly before a moment.

A batch of requests is answered by ragged gathers and one histogram; no loop over requests.

Dims: R requests, B moments (a user and a time each), M past successes (the longest row), S recent
items, L levels, V codes, G groups.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from gpr_rl.data.streams import IntArray, Stream, Today, ragged
from gpr_rl.schema import Action
from simulators.world.counts import CountIndex

DAY_S = 86_400
HOUR_S = 3_600
_GROUPS = ("vertical", "category", "advertiser")
_KINDS = np.array(
    [  # impressions, clicks, conversions, views, recent impressions
        [0, 0, 0, 1, 0],  # of all events before: views,
        [1, 0, 0, 0, 1],  # impressions without a click, ...
        [1, 1, 0, 0, 1],
        [1, 1, 1, 0, 1],
        [0, 0, 0, 0, 0],  # of those before yesterday
        [0, 0, 0, 0, -1],
        [0, 0, 0, 0, -1],
        [0, 0, 0, 0, -1],
    ],
    dtype=np.float64,
)
"""What each column of `History.counts` adds to each kind."""


def count_kinds(histogram: Any) -> Any:
    """Return impressions, clicks, conversions, views and recent impressions, [..., 5].

    Of rows of `History.counts`, int64 [..., 8]: a tensor becomes float32 (exact below 2^24), an
    array float64. A click is also an impression, a conversion also a click; recent impressions are
    yesterday's and today's.
    """
    if isinstance(histogram, np.ndarray):
        return histogram @ _KINDS
    return histogram.float() @ torch.from_numpy(_KINDS).to(histogram.device, torch.float32)


@dataclass(frozen=True)
class LoggedRequests:
    """R requests in order of time; `ad` and `action` are of the logged ones only."""

    user: IntArray
    """int64 [R]"""
    time: IntArray
    """int64 [R], seconds since day 0"""
    context: IntArray
    """int64 [R, 4]: scene, position, hour of day, device"""
    ad: Int[Tensor, " R"]
    action: Int[Tensor, " R"]
    availability: Int[Tensor, " R"] | None = None
    """The row of `Availability.table`, for worlds whose logs say what could be shown"""

    @classmethod
    def of(cls, events: pd.DataFrame, users: pd.DataFrame) -> "LoggedRequests":
        """Return the impressions among events."""
        shown = events.loc[events["kind"] == 1].reset_index(drop=True)
        user, time = shown["user_id"].to_numpy(), shown["timestamp"].to_numpy()
        place = [shown["scene"].to_numpy(), shown["position"].to_numpy()]
        place += [time % DAY_S // HOUR_S, users["device"].to_numpy()[user]]
        context = np.stack(place, axis=1).astype(np.int64)
        ad, action, *row = (
            torch.from_numpy(shown[name].to_numpy(copy=True))
            for name in ("item_id", "action", "availability")
            if name in shown
        )
        return cls(user, time, context, ad, action, *row)


def as_seen(events: pd.DataFrame) -> pd.DataFrame:
    """Return events at the time from which on they are part of a user's past.

    Where an outcome came later than its impression, that is the time of the outcome.
    """
    return events.assign(timestamp=events["seen"]) if "seen" in events else events


class History:
    """Strictly-past views of events: user_id, timestamp, kind (0 organic, 1 ad), item_id, action.

    `group` [N + M, 3] has vertical, category and advertiser of every item (ads, then organic), as
    disjoint group numbers. `same_ad` [N + M] is the ad that promotes the item's product, N where
    there is none; only `repeats` needs it.
    """

    def __init__(
        self,
        events: pd.DataFrame,
        group: IntArray,
        num_users: int,
        num_ads: int,
        same_ad: IntArray | None = None,
    ) -> None:
        self.num_ads, self.same_ad = num_ads, same_ad
        item = events["item_id"].to_numpy() + np.where(events["kind"] == 1, 0, num_ads)
        events = events.assign(item=item)
        self.group = group
        self.num_groups = int(group.max()) + 1
        self._group_offset = group * 8
        self.events = Stream.build(events, ("timestamp", "item", "action"), num_users)
        action = events["action"].to_numpy()
        positive = np.isin(action, (Action.VIEW, Action.CLICK, Action.CONVERSION))
        self.positives = Stream.build(events[positive], ("item", "action", "timestamp"), num_users)
        bought = np.isin(action, (Action.CLICK, Action.CONVERSION))
        self.successes = Stream.build(events[bought], ("item",), num_users)

    @classmethod
    def of_tables(
        cls,
        events: pd.DataFrame,
        ads: pd.DataFrame,
        organic: pd.DataFrame,
        num_users: int,
        with_repeats: bool,
    ) -> "History":
        """Return the history of a world's tables; `with_repeats` asks for `repeats`."""
        columns = [
            np.r_[ads[name].to_numpy(), organic[other].to_numpy()]
            for name, other in zip(_GROUPS, (*_GROUPS[:2], "creator"), strict=True)
        ]
        offset = np.cumsum([0] + [int(c.max()) + 1 for c in columns[:-1]])
        group = np.stack([c + o for c, o in zip(columns, offset, strict=True)], axis=1)
        same_ad = None
        if with_repeats:
            items = np.r_[ads["product_id"].to_numpy(), organic["product_id"].to_numpy()]
            found = pd.Index(ads["product_id"]).get_indexer(items)
            same_ad = np.where(found < 0, len(ads), found).astype(np.int64)
        return cls(as_seen(events), group.astype(np.int64), num_users, len(ads), same_ad)

    def counts(self, user_id: IntArray, timestamp: IntArray) -> IntArray:
        """Return a histogram of events strictly before each moment, int64 [B, G, 8].

        The last axis counts views, impressions without a click, clicks without a conversion and
        conversions, then those of them before yesterday. `count_kinds` turns it into counts that
        nest.
        """
        row, index = ragged(*self.events.before(user_id, timestamp))
        columns = self.events.columns
        since = (timestamp // DAY_S - 1) * DAY_S
        old = columns["timestamp"][index] < since[row]
        kind = columns["action"][index] - Action.VIEW + 4 * old
        base = row * (8 * self.num_groups) + kind
        flat = self._group_offset[columns["item"][index]] + base[:, None]
        shape = (len(user_id), self.num_groups, 8)
        counts = np.bincount(flat.ravel(), minlength=int(np.prod(shape))).reshape(shape)
        counts[..., :4] += counts[..., 4:]
        return counts

    @cached_property
    def _group_index(self) -> CountIndex:
        columns, num = self.events.columns, self.group.shape[1]
        cell = self.events.user[:, None] * self.num_groups + self.group[columns["item"]]
        kind = (columns["action"] - Action.VIEW).astype(np.int8)
        time = np.repeat(columns["timestamp"], num)
        return CountIndex(cell.ravel(), time, np.repeat(kind, num), num_kinds=4)

    def group_counts(self, user_id: IntArray, timestamp: IntArray, group: IntArray) -> IntArray:
        """Return the rows of `counts` for a few groups [B, G'], without the histogram.

        That is int64 [B, G', 8], `counts(user_id, timestamp)[b, group[b]]`.
        """
        cell = user_id[:, None] * self.num_groups + group
        # a user's look-ups side by side: they hit the same memory
        when = np.stack([timestamp, (timestamp // DAY_S - 1) * DAY_S], axis=-1)[:, None]
        return self._group_index.before(cell[..., None], when).reshape(*group.shape, 8)

    @cached_property
    def _repeat_index(self) -> CountIndex:
        assert self.same_ad is not None
        columns = self.positives.columns
        cell = self.positives.user * (self.num_ads + 1) + self.same_ad[columns["item"]]
        time = columns["timestamp"]
        return CountIndex(cell, time, np.zeros_like(cell), num_kinds=1)

    def ad_repeats(
        self, user_id: IntArray, timestamp: IntArray, ad_id: IntArray
    ) -> IntArray | None:
        """Return `repeats` of a few ads, int64 [B, K] for `ad_id` int64 [B, K]."""
        if self.same_ad is None:
            return None
        cell = user_id[:, None] * (self.num_ads + 1) + ad_id
        return self._repeat_index.before(cell, timestamp[:, None])[..., 0]

    def repeats(self, user_id: IntArray, timestamp: IntArray) -> IntArray | None:
        """Return how often each user took each ad's own product before, int64 [B, N].

        Views, clicks and conversions strictly before each moment count; None where the world does
        not say which items are one product.
        """
        if self.same_ad is None:
            return None
        row, index = ragged(*self.positives.before(user_id, timestamp))
        flat = self.same_ad[self.positives.columns["item"][index]] + row * (self.num_ads + 1)
        shape = (len(user_id), self.num_ads + 1)
        return np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape)[:, :-1]

    def popularity(
        self,
        user_id: IntArray,
        timestamp: IntArray,
        codes: IntArray,
        num_codes: int,
        today: Today | None = None,
    ) -> NDArray[np.float32]:
        """Return P_l(t) of GPR Eq. 6: share of past clicks and conversions per code, [B, L, V].

        0 everywhere for a user without a success strictly before `timestamp`. `codes` [N, L] are
        the ads'; `today` is of a day in progress: what follows the events before `today.since`.
        """
        before = timestamp if today is None else today.since
        row, index = ragged(*self.successes.before(user_id, before))
        item = np.take(self.successes.columns["item"], index)
        if today is not None:
            fresh = np.nonzero(today.known & (today.action >= Action.CLICK))
            row, item = np.r_[row, fresh[0]], np.r_[item, today.item[fresh]]
        levels = codes.shape[1]
        flat = np.take(codes.T, item, axis=1)  # [L, events]: long inner loops
        flat += np.arange(levels)[:, None] * num_codes
        flat += row * (levels * num_codes)
        shape = (len(user_id), levels, num_codes)
        table = np.bincount(flat.ravel(), minlength=int(np.prod(shape))).reshape(shape)
        total = np.bincount(row, minlength=len(user_id)).clip(1).astype(np.float32)
        return np.divide(table, total[:, None, None], dtype=np.float32, casting="unsafe")


def past_successes(
    world: Any, request_id: Int[Tensor, " B"]
) -> tuple[Int[Tensor, "B M L"], Bool[Tensor, "B M"]]:
    """Return the codes of every earlier click and conversion of a request's user, oldest first.

    `world` is a `simulators.world.World` or one that wraps it.

    The same events as those of `Request.popularity`: strictly before the request. Rows that are
    shorter than M are filled with code 0 and are not valid; M is at least 1.
    """
    ids = request_id.numpy()
    history = world.history
    start, stop = history.successes.before(world.request_user[ids], world.request_time[ids])
    valid = torch.arange(max(int((stop - start).max(initial=0)), 1)) < torch.from_numpy(
        (stop - start)[:, None]
    )
    _, index = ragged(start, stop)
    item = np.asarray(history.successes.columns["item"][index], dtype=np.int64)
    codes = world.codes.new_zeros(*valid.shape, world.codes.shape[1])
    codes[valid] = world.codes[torch.from_numpy(item)]
    return codes, valid
