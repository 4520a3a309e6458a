"""Inputs of the rankers, all strictly before the request, and what a world asks of rankers.

Dims: B requests, K candidates, S recent items, G groups (verticals, categories, advertisers),
F count features, N ads, M organic items.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorClass, TensorDict
from torch import Tensor

from gpr_rl.data.streams import IntArray, Today
from gpr_rl.schema import Action
from simulators.world.history import History, LoggedRequests, count_kinds

NUM_RECENT = 20
NUM_COUNT_FEATURES = 6
NUM_REPEAT_FEATURES = 2
MAX_LOOKED_UP = 12
"""Up to as many candidates a request, looking counts up beats counting everything."""
_PRIOR_CLICKS, _PRIOR_IMPRESSIONS = 0.5, 12.0


class RankerInput(TensorClass):
    """Per-request inputs, batch [B]; candidates only add their ad ids."""

    user: Tensor  # int32 [B, A] attributes
    context: Tensor  # int32 [B, C] attributes
    recent_item: Tensor  # int32 [B, S] in 0..N+M-1
    recent_known: Tensor  # bool [B, S]
    recent_action: Tensor  # int32 [B, S]


def count_features(histogram: Any) -> Any:
    """Return [..., 6] of `History.counts` rows: log counts and a smoothed click rate.

    float32 of a tensor, float64 of an array.
    """
    of = np if isinstance(histogram, np.ndarray) else torch
    counts = count_kinds(histogram)
    impressions, clicks = counts[..., 0], counts[..., 1]
    rate = of.log((clicks + _PRIOR_CLICKS) / (impressions + _PRIOR_IMPRESSIONS))
    return of.concatenate([of.log1p(counts) / 2, rate[..., None] + 3.0], -1)


def repeat_features(count: Any) -> Any:
    """Return [..., 2] of how often a user took an ad's product before; see `count_features`."""
    of = np if isinstance(count, np.ndarray) else torch
    count = of.asarray(count, dtype=of.float64 if of is np else of.float32)
    return of.stack([of.log1p(count), of.asarray(count > 0, dtype=count.dtype)], -1)


def candidate_counts(histogram: Tensor, group: Tensor, ad_id: Tensor) -> Tensor:
    """Return the count features of each candidate's own groups, float32 [B, K, 3F].

    The features are computed where there are fewer rows: per candidate, or per group.
    `histogram` is `History.counts` [B, G, 8], `group` [N + M, 3], `ad_id` [B, K].
    """
    b, num_groups, _ = histogram.shape
    index = group[ad_id] + torch.arange(b, device=ad_id.device)[:, None, None] * num_groups
    flat = index.flatten()
    if 3 * ad_id.shape[1] < num_groups:
        rows = count_features(histogram.flatten(0, 1).index_select(0, flat))
    else:
        rows = count_features(histogram.flatten(0, 1)).index_select(0, flat)
    return rows.view(*ad_id.shape, 3 * NUM_COUNT_FEATURES)


@dataclass(frozen=True)
class PastCounts:
    """What B users did before their requests, counted when asked: in the log, and today."""

    history: History
    user_id: IntArray  # int64 [B]
    timestamp: IntArray  # int64 [B], of the log's last moment: the request's, or `today.since`
    today: Today | None = None

    def part(self, rows: slice) -> "PastCounts":
        """Return the counts of some of a log's requests."""
        return PastCounts(self.history, self.user_id[rows], self.timestamp[rows])

    @cached_property
    def groups(self) -> Tensor:
        """`History.counts`, int64 [B, G, 8]."""
        return torch.from_numpy(self.history.counts(self.user_id, self.timestamp))

    @cached_property
    def repeats(self) -> Tensor | None:
        """`History.repeats`, int64 [B, N]."""
        repeats = self.history.repeats(self.user_id, self.timestamp)
        return None if repeats is None else torch.from_numpy(repeats)

    def of(self, group: Tensor, ad_id: Tensor) -> Tensor:
        """Return the count features of candidates, float32 [B, K, 3F], or 3F + 2 with repeats.

        A few candidates are looked up, many read from the histogram; the counts are the same.
        `group` is [N + M, 3], `ad_id` [B, K].
        """
        few = ad_id.shape[1] <= MAX_LOOKED_UP and "groups" not in self.__dict__
        device = ad_id.device
        if few or self.today is not None:
            counts, repeats = self._looked_up(ad_id.cpu().numpy())
            own = count_features(torch.from_numpy(counts).to(device))
            own = own.view(*ad_id.shape, 3 * NUM_COUNT_FEATURES)
            taken = None if repeats is None else torch.from_numpy(repeats).to(device)
        else:
            own = candidate_counts(self.groups.to(device), group, ad_id)
            taken = None if self.repeats is None else self.repeats.to(device).gather(1, ad_id)
        return own if taken is None else torch.cat([own, repeat_features(taken)], dim=-1)

    def exact(self, group: Tensor, ad_id: Tensor) -> NDArray[np.float64]:
        """Return `of` in float64; computed so and in numpy for a few candidates of a log."""
        if self.today is not None or ad_id.shape[1] > MAX_LOOKED_UP:
            return self.of(group, ad_id).double().numpy()
        counts, repeats = self._looked_up(ad_id.numpy())
        own = count_features(counts).reshape(*ad_id.shape, 3 * NUM_COUNT_FEATURES)
        return own if repeats is None else np.concatenate([own, repeat_features(repeats)], axis=-1)

    def of_groups(self, group: IntArray) -> IntArray:
        """Return rows of `History.counts`, int64 [B, G', 8] for groups [B, G']."""
        counts = self.history.group_counts(self.user_id, self.timestamp, group)
        today = self.today
        if today is not None:
            own = self.history.group[today.item][:, None]  # [B, 1, W, 3], at most one is the group
            same = (own == group[:, :, None, None]).any(-1) & today.known[:, None]
            kind = today.action[..., None] == np.arange(Action.VIEW, Action.CONVERSION + 1)
            counts[..., :4] += (same.astype(np.float32) @ kind.astype(np.float32)).astype(np.int64)
        return counts

    def _looked_up(self, ad_id: IntArray) -> tuple[IntArray, IntArray | None]:
        """Return `of_groups` of candidates [B, K], int64 [B, 3K, 8], and their repeats, [B, K]."""
        history, today = self.history, self.today
        counts = self.of_groups(history.group[ad_id].reshape(len(ad_id), 3 * ad_id.shape[1]))
        repeats = history.ad_repeats(self.user_id, self.timestamp, ad_id)
        if repeats is not None and today is not None:
            assert history.same_ad is not None
            same = history.same_ad[today.item][:, None] == ad_id[..., None]  # [B, K, W]
            repeats += (same & today.taken[:, None]).sum(-1)
        return counts, repeats


Features = Callable[[Tensor], tuple[RankerInput, PastCounts]]
"""From request ids, int64 [B], to what the rankers take."""


def _int32(values: IntArray) -> Tensor:
    return torch.from_numpy(values.astype(np.int32))  # training holds these for every logged row


def ranker_inputs(
    history: History,
    attributes: IntArray,
    user_id: IntArray,
    timestamp: IntArray,
    context: IntArray,
    today: Today | None = None,
) -> tuple[RankerInput, PastCounts]:
    """Return what the rankers take of B requests; what was before `timestamp` [B] counts.

    `attributes` [U, A] are of all users, `context` is [B, C], and `today` of a day in progress:
    what follows the events before `today.since`.
    """
    before = timestamp if today is None else today.since
    rows, known = history.positives.last(user_id, before, NUM_RECENT)
    item, action = (history.positives.take(name, rows) for name in ("item", "action"))
    if today is not None:
        known = np.c_[known, today.taken]
        latest = np.argsort(known, axis=1, kind="stable")[:, -NUM_RECENT:]
        known, item, action = (
            np.take_along_axis(x, latest, axis=1)
            for x in (known, np.c_[item, today.item], np.c_[action, today.action])
        )
    values = {
        "user": _int32(attributes[user_id]),
        "context": _int32(context),
        "recent_item": _int32(item),
        "recent_known": torch.from_numpy(known),
        "recent_action": _int32(np.where(known, action, 0)),
    }
    # half the time of RankerInput(...), which counts for batches of one
    inputs = RankerInput.from_tensordict(TensorDict(values, batch_size=[len(user_id)]))
    return inputs, PastCounts(history, user_id, before, today)


@dataclass(frozen=True)
class FeatureBuilder:
    """Builds `RankerInput` for logged requests of one world."""

    history: History
    user_attributes: IntArray  # int64 [U, A]
    requests: LoggedRequests

    def __call__(self, request_id: Tensor) -> tuple[RankerInput, PastCounts]:
        """Return inputs and counts of `request_id` (int64 [B])."""
        ids = request_id.numpy()
        requests = self.requests
        asked = (x[ids] for x in (requests.user, requests.time, requests.context))
        return ranker_inputs(self.history, self.user_attributes, *asked)


def prepared(builder: FeatureBuilder, request_id: Tensor) -> Features:
    """Return features of requests known beforehand, [n]: one batch, handed out one by one."""
    inputs, past = builder(request_id)
    row_of = {request: row for row, request in enumerate(request_id.tolist())}
    parts = inputs.split(1)

    def one(request_id: Tensor) -> tuple[RankerInput, PastCounts]:
        row = row_of[int(request_id)]
        return parts[row], past.part(slice(row, row + 1))

    return one


@runtime_checkable
class Counts(Protocol):
    """What B users did before their requests: `PastCounts`, or that of a day's traffic."""

    def of(self, group: Tensor, ad_id: Tensor) -> Tensor:
        """Return the count features of candidates `ad_id` [B, K], float32 [B, K, F]."""

    def exact(self, group: Tensor, ad_id: Tensor) -> NDArray[np.float64]:
        """Return the same in float64."""


WorldRankers = Callable[..., tuple[Tensor, Tensor]]
"""From inputs [B], `Counts` and candidates [B, K] to pCTR and pCVR, float32 [B, K] each; with
`exact=True` computed in float64. `rankers.frozen.FrozenRankers` is it."""


def no_rankers(*_: object, **__: object) -> tuple[Tensor, Tensor]:
    """Stand in the place of rankers in a world that they are still to be trained on: raise."""
    raise RuntimeError("this world has no rankers yet, so candidates have no outcome")
