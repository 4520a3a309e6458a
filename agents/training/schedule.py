"""Which requests a training step meets.

Dims: B requests.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from agents.rollout import World
from agents.shared_config import SharedConfig
from gpr_rl.random import Purpose, uniform


@runtime_checkable
class RehearsedRequests(Protocol):
    """A world with requests that are not in its log; `synthetic.arr.RehearsalWorld` is one."""

    def rehearsal_ids(self) -> Tensor:
        """Return their ids, int64 [R]."""


class RequestSchedule:
    """Which requests a step meets: the train split in a keyed order, reshuffled once used up."""

    def __init__(self, request_ids: Tensor, num_requests: int, seed: int) -> None:
        if len(request_ids) < num_requests:
            raise ValueError(
                f"num_requests must be at most the world's {len(request_ids)} train requests, "
                f"got {num_requests}"
            )
        self._ids = request_ids
        self._num_requests = num_requests
        self._seed = seed
        self._round = -1
        self._order = request_ids

    def batch(self, step: int) -> Tensor:
        """Return the int64 [B] request ids of a step; no id twice within a round."""
        shuffle, position = divmod(step, len(self._ids) // self._num_requests)
        if shuffle != self._round:
            key = uniform(self._seed, Purpose.ROLLOUT_REQUESTS, torch.tensor(shuffle), self._ids)
            self._order = self._ids[key.argsort(stable=True)]
            self._round = shuffle
        start = position * self._num_requests
        return self._order[start : start + self._num_requests]


def make_schedule(world: World, config: SharedConfig, seed: int) -> Callable[[int], Tensor]:
    """Return what gives the int64 [B] request ids of a step.

    Observed ones come first, then those that rehearse users' states (ARR).

    Raises:
        ValueError: Fewer requests than a batch, or `arr_share` in a world without rehearsals.
    """
    num_rehearsed = round(config.arr_share * config.num_requests)
    num_observed = config.num_requests - num_rehearsed
    parts = []
    if num_observed:
        parts.append(RequestSchedule(world.request_ids("train"), num_observed, seed))
    if num_rehearsed:
        if not isinstance(world, RehearsedRequests):
            raise ValueError(
                f"arr_share must be 0 in a world without rehearsed requests, got {config.arr_share}"
            )
        ids = world.rehearsal_ids().to(world.request_ids("train").device)
        parts.append(RequestSchedule(ids, num_rehearsed, seed))
    return lambda step: torch.cat([part.batch(step) for part in parts])
