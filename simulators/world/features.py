"""Inputs of the rankers, all strictly before the request.

Dims: B requests, K candidates, S recent items, G groups (verticals, categories, advertisers),
F count features, N ads, M organic items.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorClass, TensorDict
from torch import Tensor

from gpr_rl.data.streams import IntArray
from simulators.world.history import History, count_kinds, moments
from simulators.world.requests import LoggedRequests

NUM_RECENT = 20
NUM_COUNT_FEATURES = 6
NUM_REPEAT_FEATURES = 2
MAX_LOOKED_UP = 12
"""Up to as many candidates a request, looking counts up beats counting everything."""
_PRIOR_CLICKS, _PRIOR_IMPRESSIONS = 0.5, 12.0

_KINDS_OF_EVENTS = np.array(
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
"""From `History.group_events` to the counts of `count_kinds`."""


class RankerInput(TensorClass):
    """Per-request inputs, batch [B]; candidates only add their ad ids."""

    user: Tensor  # int32 [B, A] attributes
    context: Tensor  # int32 [B, C] attributes
    recent_item: Tensor  # int32 [B, S] in 0..N+M-1
    recent_known: Tensor  # bool [B, S]
    recent_action: Tensor  # int32 [B, S]


def count_features(histogram: Tensor) -> Tensor:
    """Return float32 [..., 6] of `History.counts` rows: log counts and a smoothed click rate."""
    counts = count_kinds(histogram)
    impressions, clicks = counts[..., 0], counts[..., 1]
    rate = torch.log((clicks + _PRIOR_CLICKS) / (impressions + _PRIOR_IMPRESSIONS))
    return torch.cat([torch.log1p(counts) / 2, rate[..., None] + 3.0], dim=-1)


def repeat_features(count: Tensor) -> Tensor:
    """Return float32 [..., 2] of how often a user took an ad's product before."""
    count = count.float()
    return torch.stack([torch.log1p(count), (count > 0).float()], dim=-1)


def candidate_counts(histogram: Tensor, group: Tensor, ad_id: Tensor) -> Tensor:
    """Return the count features of each candidate's own groups, float32 [B, K, 3F].

    The features are computed where there are fewer rows: per candidate, or per group.

    Args:
        histogram: int64 [B, G, 8], `History.counts` of the request's user.
        group: int64 [N + M, 3].
        ad_id: int64 [B, K].
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
    """What B users did before their requests, counted when asked."""

    history: History
    user_id: IntArray  # int64 [B]
    timestamp: IntArray  # int64 [B]
    moments: IntArray  # int64 [B, 2], of `history.moments`

    def part(self, rows: slice) -> "PastCounts":
        """Return the counts of some of the requests."""
        return PastCounts(
            self.history, self.user_id[rows], self.timestamp[rows], self.moments[rows]
        )

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

        Args:
            group: int64 [N + M, 3].
            ad_id: int64 [B, K].
        """
        if ad_id.shape[1] <= MAX_LOOKED_UP:
            own, repeats = self._looked_up(ad_id.numpy())
        else:
            own = candidate_counts(self.groups, group, ad_id)
            repeats = None if self.repeats is None else self.repeats.gather(1, ad_id)
        return own if repeats is None else torch.cat([own, repeat_features(repeats)], dim=-1)

    def exact(self, ad_id: IntArray) -> NDArray[np.float64]:
        """Return `of` for a few candidates in float64 and numpy: little to do for one of them."""
        groups = self.history.group[ad_id]
        seen = self.history.group_events(self.user_id[:, None, None], self.moments, groups)
        counts = seen.reshape(*seen.shape[:-2], 8) @ _KINDS_OF_EVENTS
        features = np.empty((*groups.shape, NUM_COUNT_FEATURES))
        np.log1p(counts, out=features[..., :-1])
        features[..., :-1] /= 2
        rate = (counts[..., 1] + _PRIOR_CLICKS) / (counts[..., 0] + _PRIOR_IMPRESSIONS)
        features[..., -1] = np.log(rate) + 3.0
        features = features.reshape(*ad_id.shape, 3 * NUM_COUNT_FEATURES)
        repeats = self.history.ad_repeats(self.user_id, self.timestamp, ad_id)
        if repeats is None:
            return features
        taken = np.stack([np.log1p(repeats), repeats > 0], axis=-1)
        return np.concatenate([features, taken], axis=-1)

    def _looked_up(self, ad_id: IntArray) -> tuple[Tensor, Tensor | None]:
        groups = self.history.group[ad_id].reshape(len(ad_id), 3 * ad_id.shape[1])
        counts = self.history.group_counts(self.user_id, self.timestamp, groups)
        repeats = self.history.ad_repeats(self.user_id, self.timestamp, ad_id)
        features = count_features(torch.from_numpy(counts))
        features = features.view(*ad_id.shape, 3 * NUM_COUNT_FEATURES)
        return features, None if repeats is None else torch.from_numpy(repeats)


Features = Callable[[Tensor], tuple[RankerInput, PastCounts]]
"""From request ids, int64 [B], to what the rankers take."""


def _int32(values: IntArray) -> Tensor:
    return torch.from_numpy(values.astype(np.int32))  # training holds these for every logged row


@dataclass(frozen=True)
class FeatureBuilder:
    """Builds `RankerInput` for requests of one world."""

    history: History
    user_attributes: IntArray  # int64 [U, A]
    requests: LoggedRequests

    def __call__(self, request_id: Tensor) -> tuple[RankerInput, PastCounts]:
        """Return inputs and counts of `request_id` (int64 [B])."""
        ids = request_id.numpy()
        user, time = self.requests.user[ids], self.requests.time[ids]
        positives = self.history.positives
        rows, known = positives.last(user, time, NUM_RECENT)
        values = {
            "user": _int32(self.user_attributes[user]),
            "context": _int32(self.requests.context[ids]),
            "recent_item": _int32(positives.take("item", rows)),
            "recent_known": torch.from_numpy(known),
            "recent_action": _int32(np.where(known, positives.take("action", rows), 0)),
        }
        # half the time of RankerInput(...), which counts for batches of one
        inputs = RankerInput.from_tensordict(TensorDict(values, batch_size=[len(ids)]))
        return inputs, PastCounts(self.history, user, time, moments(time))


class PreparedFeatures:
    """A `FeatureBuilder` of requests known beforehand: one batch, handed out one by one."""

    def __init__(self, builder: FeatureBuilder, request_id: Tensor) -> None:
        """Build the inputs of `request_id` (int64 [n])."""
        inputs, self._past = builder(request_id)
        self._row = {request: row for row, request in enumerate(request_id.tolist())}
        self._inputs = inputs.split(1)

    def __call__(self, request_id: Tensor) -> tuple[RankerInput, PastCounts]:
        """Return inputs and counts of one of the requests, int64 [1]."""
        row = self._row[int(request_id)]
        return self._inputs[row], self._past.part(slice(row, row + 1))
