"""The requests of a day: who asks, when and where. Ads play no part in it.

Dims: M markets (independent days), R requests of a day, U users.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from gpr_rl.random import Purpose, uniform
from simulators.synthetic.behavior import NUM_POSITIONS
from simulators.synthetic.logs import HOUR_SHARE, SCENE_SHARE, has_synthetic_places
from simulators.world import World
from simulators.world.eligibility import Availability
from simulators.world.history import DAY_S, HOUR_S

_REQUESTS_PER_CHUNK = 1 << 15  # stays in the cache


@dataclass(frozen=True)
class Arrivals:
    """The requests of M days, each in order of time, int32 [M, R].

    Rows that are shorter than R are filled with copies of their last request; see `count`.
    """

    user: Tensor
    time: Tensor
    """Seconds since the world's day 0."""
    scene: Tensor
    position: Tensor
    template: Tensor
    """The logged request that lent its place, -1 where none did."""
    count: Tensor
    """int64 [M], requests of each day."""

    def of(self, market: Tensor, number: Tensor) -> tuple[Tensor, ...]:
        """Return user, time, scene, position and template of requests, int64."""
        columns = self.user, self.time, self.scene, self.position, self.template
        return tuple(column[market, number].long() for column in columns)


class ActivityTraffic:
    """Users ask in proportion to their activity, by the hour's and the scene's shares."""

    def __init__(self, world: World) -> None:
        activity = world.users["activity"].to_numpy(dtype=np.float64)
        self._mean = max(round(float(activity.sum())), 1)
        self._user = _cumulative(activity)
        self._hour = _cumulative(np.asarray(HOUR_SHARE))
        self._scene = _cumulative(np.asarray(SCENE_SHARE))

    def num_requests(self, day: Int[Tensor, " M"]) -> Int[Tensor, " M"]:
        """Return the users' mean impressions per day, summed."""
        return torch.full_like(day, self._mean)

    def pick(self, day: Int[Tensor, " M"], u: Tensor) -> tuple[Tensor, ...]:
        """Return user, hour, scene, position and template (none) for draws `u` [4, M, R]."""
        user, hour, scene = (
            torch.searchsorted(table, part.contiguous(), right=True)
            for table, part in zip((self._user, self._hour, self._scene), u[:3], strict=True)
        )
        position = (u[3] * NUM_POSITIONS).long()
        return user, hour, scene, position, torch.full_like(user, -1)


class LoggedTraffic:
    """Every request copies one of the same day's logged requests, drawn with replacement."""

    def __init__(self, world: World) -> None:
        day = world.request_time // DAY_S
        self._first = torch.from_numpy(np.searchsorted(day, np.arange(world.info.num_days + 1)))
        self._user = torch.tensor(world.request_user)
        self._hour = torch.tensor(world.request_time % DAY_S // HOUR_S)
        self._context = torch.tensor(world.request_context)

    def num_requests(self, day: Int[Tensor, " M"]) -> Int[Tensor, " M"]:
        """Return how many requests the log has on each day."""
        return self._first[day + 1] - self._first[day]

    def pick(self, day: Int[Tensor, " M"], u: Tensor) -> tuple[Tensor, ...]:
        """Return the same of logged requests, drawn whole."""
        size = self.num_requests(day)[:, None]
        template = self._first[day][:, None] + (u[0] * size).long()
        scene, position = self._context[template][..., :2].unbind(-1)
        return self._user[template], self._hour[template], scene, position, template


Source = ActivityTraffic | LoggedTraffic
"""Where the requests of a day come from."""


def traffic_of(world: World) -> Source:
    """Return how requests arrive in a world: by activity if synthetic, else as logged."""
    by_activity = "activity" in world.users and has_synthetic_places(world)
    if by_activity and not isinstance(world.legality, Availability):
        return ActivityTraffic(world)
    return LoggedTraffic(world)


def draw_arrivals(
    source: Source,
    root: int,
    seed: Int[Tensor, " M"],
    episode: Int[Tensor, " M"],
    day: Int[Tensor, " M"],
    num_requests: int | None = None,
) -> Arrivals:
    """Draw the requests of M days.

    The r-th draw of a day is a function of (root, seed, episode, r); the day's requests are then
    put in order of time, ties in order of the draws. A day has `num_requests` requests, or as many
    as the source says.
    """
    count = source.num_requests(day)
    if num_requests is not None:
        count = count.clamp_max(0) + num_requests
    size = int(count.max()) if len(count) else 0
    parts = []
    for rows in torch.arange(len(day)).split(max(1, _REQUESTS_PER_CHUNK // max(size, 1))):
        number = torch.arange(size)
        draw = torch.arange(5)[:, None, None]
        u = uniform(root, Purpose.ARRIVAL, seed[rows, None], episode[rows, None], draw, number)
        user, hour, *place = source.pick(day[rows], u[:4])
        second = (u[4] * HOUR_S).long()
        time = day[rows, None] * DAY_S + hour * HOUR_S + second
        last = count[rows, None] - 1
        padded = torch.where(number > last, torch.iinfo(torch.int32).max, time)
        order = padded.argsort(dim=1, stable=True)
        order = torch.where(number > last, order.gather(1, last), order)
        parts.append([x.gather(1, order).int() for x in (user, time, *place)])
    user, time, scene, position, template = map(torch.cat, zip(*parts, strict=True))
    return Arrivals(user, time, scene, position, template, count)


def _cumulative(weight: np.ndarray) -> Tensor:
    """Return the inner edges of [0, 1) cut in proportion to `weight`."""
    edges = np.cumsum(weight)
    return torch.from_numpy(edges[:-1] / edges[-1])
