"""Which requests train, validate and test a row of the architecture study.

Dims: U users, E requests.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.errors import UserError
from gpr_rl.data.streams import IntArray
from gpr_rl.schema import Action
from simulators.world import World
from simulators.world.history import DAY_S

TIME = "time"
HISTORIES = {"leave-one-out": 50, "leave-one-out-20": 20}
"""Items that a history holds at most; of organic items, which take one token, twice as many."""
PROTOCOLS = (TIME, *HISTORIES)
MIN_EVENTS = 3
"""Clicks and conversions of a user who is tested: one to learn from, validation, test."""


@dataclass(frozen=True)
class Protocol:
    """A world as a protocol shows it.

    What a user only was shown says more of the system that chose it than of the user: held-out
    requests are those whose ad was clicked or converted on.
    """

    world: World
    until: IntArray
    """int64 [U], seconds; what a row learns of a user lies before it."""
    validation: Tensor
    """int64, request ids."""
    test: Tensor

    def held_out(self, split: str, count: int) -> Tensor:
        """Return up to `count` requests of `validation` or `test`, spread evenly, int64 [E]."""
        ids = self.validation if split == "validation" else self.test
        if len(ids) <= count:
            return ids
        return ids[torch.linspace(0, len(ids) - 1, count).long()]

    def training_ads(self) -> Tensor:
        """Return the ads of all requests that may be learned from, one entry each."""
        logged = self.world.request_time < self.until[self.world.request_user]
        return self.world.request_ad[torch.from_numpy(logged)]


def make_protocol(name: str, world: World) -> Protocol:
    """Return a protocol of `PROTOCOLS`.

    Raises:
        UserError: A split is empty: no ad was clicked on its days, or no user has three clicks or
            conversions to leave one out of.
    """
    if name == TIME:
        return _by_time(world)
    return _leave_one_out(with_history(world, HISTORIES[name]))


def _by_time(world: World) -> Protocol:
    taken = world.request_action >= int(Action.CLICK)
    ids = {split: world.request_ids(split) for split in ("validation", "test")}
    for split, found in ids.items():
        ids[split] = found[taken[found]]
        if not len(ids[split]):
            raise UserError(
                f"world {world.info.name!r} has no click or conversion on its {split} days: try "
                f"--protocol {next(iter(HISTORIES))}"
            )
    until = np.full(len(world.users), world.info.num_log_days * DAY_S)
    return Protocol(world, until, ids["validation"], ids["test"])


def _leave_one_out(world: World) -> Protocol:
    taken = np.flatnonzero(world.request_action.numpy() >= int(Action.CLICK))
    taken = taken[np.lexsort((taken, world.request_time[taken], world.request_user[taken]))]
    user = world.request_user[taken]
    count = np.bincount(user, minlength=len(world.users))
    last = count.cumsum() - 1
    tested = np.flatnonzero(count >= MIN_EVENTS)
    if not len(tested):
        raise UserError(
            f"no user of world {world.info.name!r} has {MIN_EVENTS} clicks or conversions: nothing "
            "to leave out"
        )
    test, validation = taken[last[tested]], taken[last[tested] - 1]
    until = np.full(len(world.users), world.info.num_days * DAY_S)
    until[tested] = world.request_time[validation]
    return Protocol(world, until, torch.from_numpy(validation), torch.from_numpy(test))


def with_history(world: World, num_items: int) -> World:
    """Return the same world whose requests see at most this many past ads.

    Beside them a sequence holds the USER token and the request's own; an ad takes two tokens.
    """
    return world.replace(info=replace(world.info, max_tokens=2 * num_items + 2))
