"""Days in progress: what users did today, seen beside the log of the days before.

A simulated day starts from the log at midnight. Organic views of the day come from the log, ad
impressions are those of the simulation, and a request sees all that came before it.

Dims: B requests at hand, M markets (independent days), R requests of a day, S ad slots of a
request, W events of today, C context attributes.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from gpr_rl.data.streams import IntArray, Stream, Today
from gpr_rl.random import Purpose, uniform
from gpr_rl.schema import Action, Request
from simulators.day.traffic import Arrivals
from simulators.world import World
from simulators.world.features import PastCounts, RankerInput, ranker_inputs
from simulators.world.history import DAY_S, HOUR_S

_ORDER_BITS = 24


@dataclass(frozen=True)
class Moment:
    """B requests of days in progress, int64 [B] each, and what their users did today."""

    number: Tensor
    user: Tensor
    time: Tensor
    context: Tensor
    """[B, C], scene, position, hour, device."""
    today: Today

    def select(self, row: Int[Tensor, " R"]) -> "Moment":
        """Return the given rows."""
        if torch.equal(row, torch.arange(len(self.user))):
            return self
        today = Today(*(value[row.numpy()] for value in vars(self.today).values()))
        return Moment(self.number[row], self.user[row], self.time[row], self.context[row], today)

    def request(self, world: World) -> Request:
        """Return what the policy may know, batch [B]; `request_id` is the number in the day."""
        return world.request_at(self.number, *self._asked(), self.today)

    def features(self, world: World) -> tuple[RankerInput, PastCounts]:
        """Return what the rankers take."""
        asked = self._asked()
        return ranker_inputs(world.history, world.user_attributes, *asked, self.today)

    def past(self, world: World) -> PastCounts:
        """Return the counts of what the users did before."""
        return PastCounts(world.history, self.user.numpy(), self.today.since, self.today)

    def _asked(self) -> tuple[IntArray, IntArray, IntArray]:
        return self.user.numpy(), self.time.numpy(), self.context.numpy()


class LiveHistory:
    """What M markets showed today, and every moment's view of it.

    Attributes:
        arrivals: The requests of the days.
    """

    def __init__(self, world: World, num_markets: int, num_slots: int = 1) -> None:
        """Start without days; call `begin`."""
        self.world, self.num_slots = world, num_slots
        events = world.events
        self._organic = Stream.build(
            events[events["kind"] == 0], ("timestamp", "item_id"), len(world.users)
        )
        columns = self._organic.columns  # with a last entry, so that there always is one
        self._organic_item, self._organic_time = (
            torch.nn.functional.pad(torch.from_numpy(columns[name]), (0, 1))
            for name in ("item_id", "timestamp")
        )
        empty = torch.zeros(num_markets, 0, dtype=torch.int32)
        count = torch.zeros(num_markets, dtype=torch.int64)
        self.arrivals = Arrivals(empty, empty, empty, empty, empty, count)
        slots = empty[..., None].expand(-1, -1, num_slots)
        self._store = dict.fromkeys(("cell", "first", "request"), empty)
        self._store |= {"shown": slots, "action": slots.to(torch.int8), "kept": slots.bool()}

    def begin(
        self,
        rows: Bool[Tensor, " M"],
        arrivals: Arrivals,
        keys: tuple[int, Int[Tensor, " M"], Int[Tensor, " M"]],
    ) -> None:
        """Start new days in the markets of `rows`, with a row of `arrivals` each.

        Draws depend on `keys`: root, and every market's seed and episode.
        """
        self._keys = keys
        markets, size = arrivals.user.shape
        # A market's store is in order of (user, time), so that a user's past is one run.
        index = torch.arange(size).expand(markets, -1)
        padding = index >= arrivals.count[:, None]
        user, order = arrivals.user.masked_fill(padding, len(self.world.users)).sort(stable=True)
        first = torch.searchsorted(user, user)
        shape = (markets, size, self.num_slots)
        fresh = {
            "cell": torch.empty_like(order).scatter_(1, order, index).int(),
            "first": torch.empty_like(first).scatter_(1, order, first).int(),
            "request": order.int(),
            "shown": torch.full(shape, -1, dtype=torch.int32),
            "action": torch.zeros(shape, dtype=torch.int8),
            "kept": torch.zeros(shape, dtype=torch.bool),
        }
        self._store = {name: _replace(self._store[name], rows, fresh[name]) for name in fresh}
        old, new = vars(self.arrivals), vars(arrivals)
        columns = {name: _replace(old[name], rows, new[name]) for name in new if name != "count"}
        count = self.arrivals.count.masked_scatter(rows, arrivals.count)
        self.arrivals = Arrivals(**columns, count=count)

    def record(
        self,
        market: Int[Tensor, " B"],
        number: Int[Tensor, " B"],
        ad_id: Int[Tensor, "B S"],
        action: Int[Tensor, "B S"],
    ) -> None:
        """Store what requests showed (-1: nothing in a slot) and what users did at once.

        Whether an impression stays in the token stream if nobody reacts is drawn here.
        """
        cell = self._store["cell"][market, number].long()
        self._store["shown"][market, cell] = ad_id.int()
        self._store["action"][market, cell] = action.to(torch.int8)
        root, seed, episode = self._keys
        keys = seed[market, None], episode[market, None], number[:, None]
        draw = uniform(root, Purpose.DAY_IMPRESSION_KEPT, *keys, torch.arange(self.num_slots))
        self._store["kept"][market, cell] = draw < self.world.info.impression_share

    def convert(
        self, market: Int[Tensor, " P"], number: Int[Tensor, " P"], slot: Int[Tensor, " P"]
    ) -> None:
        """Turn earlier clicks into conversions."""
        cell = self._store["cell"][market, number].long()
        self._store["action"][market, cell, slot] = int(Action.CONVERSION)

    def open_clicks(self, market: Int[Tensor, " B"], since: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Return how many clicks at `since` (seconds) or later have not converted."""
        request = self._store["request"][market].long()
        time = self.arrivals.time[market].gather(1, request)
        clicked = self._store["action"][market] == Action.CLICK
        return (clicked & (time >= since[:, None])[..., None]).flatten(1).sum(1)

    def at(self, market: Int[Tensor, " B"], number: Int[Tensor, " B"]) -> Moment:
        """Return what is known at the given requests, before they show anything."""
        user, time, scene, position, _ = self.arrivals.of(market, number)
        midnight = time // DAY_S * DAY_S
        item, action, when, kept, contexts, key = zip(
            self._organic_today(user, time, midnight),
            self._shown_today(market, number, user, midnight),
            strict=True,
        )
        order_key, order = torch.cat(key, 1).sort(1)
        known = order_key >= 0
        columns = [torch.cat(x, 1).gather(1, order) for x in (item, action, when, kept)]
        joined = torch.cat(contexts, 1)
        places = joined.gather(1, order[..., None].expand(-1, -1, joined.shape[-1]))
        columns[3] = known & (columns[3] | (columns[1] != Action.IMPRESSION))
        today = (midnight, *columns[:3], places, columns[3], known)
        context = self._context(user, time, scene, position)
        return Moment(number, user, time, context, Today(*(x.numpy() for x in today)))

    def _context(self, user: Tensor, time: Tensor, scene: Tensor, position: Tensor) -> Tensor:
        device = self.world.user_column("device")[user]
        return torch.stack([scene, position, time % DAY_S // HOUR_S, device], dim=-1)

    def _organic_today(self, user: Tensor, time: Tensor, midnight: Tensor) -> tuple[Tensor, ...]:
        """Return item, action, time, kept, context and sort key of today's organic views."""
        users = user.numpy()
        _, stop = self._organic.before(users, time.numpy())
        _, start = self._organic.before(users, midnight.numpy())
        width = int((stop - start).max(initial=1))
        index = torch.from_numpy(start)[:, None] + torch.arange(width)
        known = index < torch.from_numpy(stop)[:, None]
        index = torch.where(known, index, 0)
        item = self._organic_item[index] + self.world.num_ads
        item = item.clamp_max(len(self.world.item_codes) - 1)  # padding, in a world of ads alone
        when = self._organic_time[index]
        key = torch.where(known, (when - midnight[:, None]) << _ORDER_BITS, -1)
        context = when.new_zeros(*when.shape, self.world.request_context.shape[1])
        return item, torch.full_like(item, int(Action.VIEW)), when, known, context, key

    def _shown_today(
        self, market: Tensor, number: Tensor, user: Tensor, midnight: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the same of today's ad impressions."""
        store = self._store
        stop, first = (store[name][market, number].long() for name in ("cell", "first"))
        width = int((stop - first).max()) if len(stop) else 0
        index = first[:, None] + torch.arange(width)
        inside = index < stop[:, None]
        index = torch.where(inside, index, 0)
        row = market[:, None]
        ad_id = store["shown"][row, index].long()
        known = inside[..., None] & (ad_id >= 0)
        request = store["request"][row, index].long()
        _, when, scene, position, _ = self.arrivals.of(row, request)
        slots = self.num_slots
        rank = torch.arange(width)[:, None] * slots + torch.arange(slots) + 1
        key = ((when - midnight[:, None])[..., None] << _ORDER_BITS) + rank
        context = self._context(user[:, None].expand(when.shape), when, scene, position)

        def each_slot(x: Tensor) -> Tensor:
            return x.unsqueeze(2).expand(-1, -1, slots, *x.shape[2:]).flatten(1, 2)

        return (
            ad_id.clamp_min(0).flatten(1),
            store["action"][row, index].long().flatten(1),
            each_slot(when),
            store["kept"][row, index].flatten(1),
            each_slot(context),
            torch.where(known, key, -1).flatten(1),
        )


def _replace(old: Tensor, rows: Bool[Tensor, " M"], fresh: Tensor) -> Tensor:
    """Return `old` with other rows, padded with zeros to the longer of the two."""
    if rows.all():
        return fresh
    wide = old.new_zeros(len(old), max(old.shape[1], fresh.shape[1]), *old.shape[2:])
    wide[:, : old.shape[1]] = old
    wide[rows] = 0
    wide[rows, : fresh.shape[1]] = fresh
    return wide
