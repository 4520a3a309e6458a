"""Anticipatory Request Rehearsal: synthetic requests from users' current states (GPR 3.3).

A model trained on old contexts only reacts; ARR lets it rehearse what users would ask next. The
interval between a very active user's requests is 2 hours at peak and 4 hours off-peak, and grows
for others as their request rate falls. A request is put together as the paper says: organic tokens
from what the user viewed last, the USER token reused from the request before for very active users,
the ENVIRONMENT token of that moment.

Dims: B requests, R logged requests, S synthetic requests, U users.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from gpr_rl.data.streams import IntArray, Stream, ragged
from gpr_rl.random import Purpose, uniform
from gpr_rl.schema import Request
from simulators.synthetic.behavior import NUM_POSITIONS
from simulators.synthetic.logs import HOUR_SHARE, SCENE_SHARE, has_synthetic_places
from simulators.world import World
from simulators.world.eligibility import Availability
from simulators.world.history import DAY_S, HOUR_S
from simulators.world.placed import PlacedWorld

PEAK_INTERVAL_H, OFF_PEAK_INTERVAL_H = 2.0, 4.0


def peak_hours() -> Bool[Tensor, "24"]:
    """Return which hours are peak: those with more than the mean share of a day's requests."""
    share = torch.as_tensor(np.asarray(HOUR_SHARE))
    return share > share.mean()


def rehearsal_times(
    requests_per_day: np.ndarray, is_active: np.ndarray, start: int, stop: int, seed: int
) -> tuple[IntArray, IntArray]:
    """Return user and time (s) of every synthetic request in [start, stop), by user and time.

    Intervals are counted in a clock that advances by 1 in 2 hours at peak and in 4 off-peak. Active
    users ask at every tick; a user with a share x of the active users' mean rate at every 1/x-th.
    The phase is drawn per user. `requests_per_day` [U] are the observed rates, `is_active` [U] says
    who is very active; `start` and `stop` are full hours, in seconds.
    """
    edges = np.arange(start, stop + 1, HOUR_S)
    peak = peak_hours().numpy()[edges[:-1] % DAY_S // HOUR_S]
    advance = np.where(peak, 1.0 / PEAK_INTERVAL_H, 1.0 / OFF_PEAK_INTERVAL_H)
    clock = np.r_[0.0, np.cumsum(advance)]
    active_rate = requests_per_day[is_active].mean() if is_active.any() else 1.0
    share = np.where(is_active, 1.0, np.minimum(requests_per_day / active_rate, 1.0))
    user = torch.arange(len(share))
    phase = uniform(seed, Purpose.ACTIVE_REQUEST, user, torch.tensor(0)).numpy()
    # ticks at (phase + k) / share for k = 0, 1, ... below the clock's end
    count = np.maximum(np.ceil(clock[-1] * share - phase), 0.0).astype(np.int64)
    row, number = ragged(np.zeros_like(count), count)
    tick = (phase[row] + number) / share[row]
    time = np.interp(tick, clock, edges.astype(np.float64)).astype(np.int64)
    return row, np.minimum(time, stop - 1)


class RehearsalWorld:
    """A world with synthetic requests behind the logged ones; all else is the world's.

    Their ids start at the number of logged requests; logged and synthetic ids may be mixed. The
    last `num_days` logged days are rehearsed; states are of the request's own time, and nothing at
    or after it is known to it.

    Raises:
        ValueError: A world whose logs say what could be shown: it can't tell of other moments.
            Likewise any other world of a log: the shares of its scenes are not known.
    """

    def __init__(self, world: World, seed: int, *, num_days: int = 2) -> None:
        if isinstance(world.legality, Availability):
            raise ValueError(
                f"world {world.info.name!r} only knows which ads were available to its logged "
                "requests; rehearsed ones need targeting"
            )
        if not has_synthetic_places(world):
            raise ValueError(
                f"world {world.info.name!r} comes from a log: rehearsed requests need the scenes "
                "and positions of a synthetic world"
            )
        self._world = world
        self._num_logged = world.num_requests
        stop = world.info.num_log_days * DAY_S
        start = max(stop - num_days * DAY_S, 0)
        logged = world.request_time < stop
        rate = np.bincount(world.request_user[logged], minlength=len(world.users))
        group = world.users["activity_group"].to_numpy()
        self._is_active = group == group.max()
        per_day = rate / world.info.num_log_days
        user, time = rehearsal_times(per_day, self._is_active, start, stop, seed)
        context = self._environment(user, time, seed)
        requests = replace(
            world.requests,
            user=np.concatenate([world.request_user, user]),
            time=np.concatenate([world.request_time, time]),
            context=np.concatenate([world.request_context, context]),
        )
        self._extended = world.replace(requests=requests)
        asked = pd.DataFrame({"user_id": world.request_user, "timestamp": world.request_time})
        self._asked = Stream.build(asked, ("timestamp",), len(world.users))

    def _environment(self, user: IntArray, time: IntArray, seed: int) -> IntArray:
        """Return scene, position, hour and device of the moment, int64 [S, 4]."""
        keys = torch.from_numpy(user), torch.from_numpy(time)
        draws = [
            uniform(seed, Purpose.ACTIVE_REQUEST, *keys, torch.tensor(i)).numpy() for i in (1, 2)
        ]
        edges = np.cumsum(SCENE_SHARE)[:-1]
        scene = np.searchsorted(edges, draws[0], side="right")
        position = (draws[1] * NUM_POSITIONS).astype(np.int64)
        device = self._world.user_column("device").numpy()[user]
        return np.stack([scene, position, time % DAY_S // HOUR_S, device], axis=1).astype(np.int64)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_extended" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._extended, name)

    def to(self, device: torch.device | str) -> "RehearsalWorld | PlacedWorld":
        """Return the world with its answers on a device (`World.to`)."""
        on_cpu = torch.device(device).type == "cpu"
        return self if on_cpu else PlacedWorld(self, device)  # type: ignore[arg-type]

    def rehearsal_ids(self) -> Int[Tensor, " S"]:
        """Return the ids of the synthetic requests."""
        return torch.arange(self._num_logged, len(self._extended.request_time))

    def request_ids(self, split: str) -> Int[Tensor, " R"]:
        """Return the logged requests of a split."""
        return self._world.request_ids(split)

    def request(self, request_id: Int[Tensor, " B"]) -> Request:
        """Return requests; very active users' synthetic ones carry their last USER token."""
        request = self._extended.request(request_id)
        ids = request_id.numpy()
        user, time = self._extended.request_user[ids], self._extended.request_time[ids]
        reused = (ids >= self._num_logged) & self._is_active[user]
        rows = np.flatnonzero(reused)
        if len(rows):
            before, found = self._asked.last(user[rows], time[rows], 1)
            previous = self._asked.take("timestamp", before)[found]
            rows = rows[found[:, 0]]
            preference = self._world.history.popularity(
                user[rows], previous, self._world.codes.numpy(), self._world.info.num_codes
            )
            tokens = request.tokens
            fresh = tokens.preference.clone()
            fresh[torch.from_numpy(rows)] = torch.from_numpy(preference)
            tokens.preference = fresh
        return request
