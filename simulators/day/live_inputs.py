"""What a policy and the rankers are told of requests in a simulated day (`simulators.day.live`).

Everything is the log before midnight with today's events appended.

Dims: B requests, W events of today, T tokens, K candidates, S recent items, L levels, V codes,
F count features, G groups.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gpr_rl.schema import Action, Request, Tokens, TokenType, time_gap_bucket
from simulators.day.live import Moment
from simulators.world import World
from simulators.world.features import (
    NUM_RECENT,
    RankerInput,
    count_features,
    repeat_features,
)

Columns = dict[str, Tensor]


def live_request(world: World, moment: Moment) -> Request:
    """Return what the policy may know, batch [B]; `request_id` is the number in the day."""
    popularity = _popularity(world, moment)
    return Request(
        request_id=moment.number,
        user_id=moment.user,
        timestamp=moment.time,
        tokens=_tokens(world, moment, popularity),
        popularity=popularity,
        batch_size=[len(moment.user)],
    )


def live_features(world: World, moment: Moment) -> tuple[RankerInput, "LiveCounts"]:
    """Return what the rankers take."""
    user, midnight = moment.user.numpy(), moment.midnight.numpy()
    stream = world.history.positives
    rows, logged_known = stream.last(user, midnight, NUM_RECENT)
    old_known = torch.from_numpy(logged_known)
    old = [torch.from_numpy(stream.take(name, rows)).long() for name in ("item", "action")]
    index, new_known = latest(moment.known & (moment.action != Action.IMPRESSION), NUM_RECENT)
    new = [x.gather(1, index) for x in (moment.item, moment.action)]
    count = new_known.sum(1, keepdim=True)
    column = torch.arange(NUM_RECENT)
    is_new = column >= NUM_RECENT - count
    shifted = (column + count).clamp_max(NUM_RECENT - 1)
    known = is_new | old_known.gather(1, shifted)
    item, action = (
        torch.where(is_new, fresh, logged.gather(1, shifted))
        for fresh, logged in zip(new, old, strict=True)
    )
    inputs = RankerInput(
        user=torch.from_numpy(world.user_attributes[user]).int(),
        context=moment.context.int(),
        recent_item=item.int(),
        recent_known=known,
        recent_action=torch.where(known, action, 0).int(),
        batch_size=[len(user)],
    )
    return inputs, LiveCounts(world, moment)


@dataclass(frozen=True)
class LiveCounts:
    """`simulators.world.features.PastCounts` of requests in a simulated day."""

    world: World
    moment: Moment

    def histogram(self, group: Int[Tensor, "B G"]) -> Int[Tensor, "B G 8"]:
        """Return the rows of `History.counts` for groups [B, G]."""
        moment, history = self.moment, self.world.history
        logged = history.group_counts(moment.user.numpy(), moment.midnight.numpy(), group.numpy())
        own = self.world.group[moment.item].masked_fill(~moment.known[..., None], -1)
        same = torch.zeros(*group.shape, moment.item.shape[1])  # [B, G, W]
        for column in own.unbind(-1):  # an event counts for its vertical, category and advertiser
            same += column[:, None] == group[..., None]
        kind = moment.action - Action.VIEW + 4 * (moment.action != Action.VIEW)
        one_hot = (kind[..., None] == torch.arange(8)).float()
        return torch.as_tensor(logged) + (same @ one_hot).long()

    def of(self, group: Int[Tensor, "I 3"], ad_id: Int[Tensor, "B K"]) -> Float[Tensor, "B K F"]:
        """Return the count features of candidates, as `PastCounts.of`."""
        rows = self.histogram(group[ad_id].flatten(1))
        features = count_features(rows).view(*ad_id.shape, -1)
        repeats = self._repeats(ad_id)
        return features if repeats is None else torch.cat([features, repeats], dim=-1)

    def _repeats(self, ad_id: Tensor) -> Tensor | None:
        moment, history = self.moment, self.world.history
        logged = history.repeats(moment.user.numpy(), moment.midnight.numpy())
        if logged is None or history.same_ad is None:
            return None
        product = torch.from_numpy(history.same_ad)[moment.item]
        taken = moment.known & (moment.action != Action.IMPRESSION)
        today = ((product[:, None] == ad_id[..., None]) & taken[:, None]).sum(-1)
        return repeat_features(torch.from_numpy(logged).gather(1, ad_id) + today)


def latest(mask: Bool[Tensor, "B W"], size: int) -> tuple[Int[Tensor, "B S"], Bool[Tensor, "B S"]]:
    """Return where the last `size` True entries are, aligned to the right, and which exist."""
    short = size - mask.shape[1]
    padded = torch.nn.functional.pad(mask, (max(short, 0), 0))
    order = padded.to(torch.int8).argsort(dim=1, stable=True)[:, -size:]
    return (order - max(short, 0)).clamp_min(0), padded.gather(1, order)


def _popularity(world: World, moment: Moment) -> Tensor:
    """Return P_l(t) of GPR Eq. 6, [B, L, V]."""
    counts = world.history.success_counts(
        moment.user.numpy(), moment.midnight.numpy(), world.codes.numpy(), world.info.num_codes
    )
    success = moment.known & (moment.action >= Action.CLICK)
    codes = world.item_codes[moment.item].mT  # [B, L, W]
    table = torch.from_numpy(counts)
    table = table.scatter_add(2, codes, success[:, None].to(table.dtype).expand_as(codes))
    return (table.double() / table.sum(-1, keepdim=True).clamp_min(1)).float()


def _tokens(world: World, moment: Moment, popularity: Tensor) -> Tokens:
    """Return the latest tokens of the log and of today behind a USER token, the own E last."""
    sequences = world.sequences
    user, midnight = moment.user.numpy(), moment.midnight.numpy()
    base, _ = sequences.tokens(user, midnight, moment.context.numpy())
    base_time = torch.from_numpy(sequences.last_time(user, midnight))
    room = sequences.max_tokens - 2
    today, when, kept = _today_tokens(world, moment)
    index, known = latest(kept, room)
    when = when.gather(1, index)
    previous = torch.cat([base_time[:, None], when[:, :-1]], dim=1)
    first = known & ~torch.nn.functional.pad(known, (1, 0))[:, :-1]
    gap = when - torch.where(first, base_time[:, None], previous)
    last_time = torch.where(known[:, -1], when[:, -1], base_time)
    own_gap = (moment.time - last_time)[:, None]
    own: Columns = {
        "kind": torch.full_like(own_gap, int(TokenType.ENVIRONMENT)),
        "codes": base.codes.new_zeros(len(user), 1, base.codes.shape[-1]),
        "action": torch.full_like(own_gap, int(Action.NONE)),
        "context": moment.context[:, None],
        "time_gap": time_gap_bucket(own_gap),
    }
    fresh = {name: _pick(column, index) for name, column in today.items()}
    fresh["time_gap"] = time_gap_bucket(gap.clamp_min(0))
    # sources: base columns 0..T-1, today's T..2T-3, the own E 2T-2, nothing 2T-1
    source, length = _layout(base, fresh["kind"], known)
    columns = {}
    for name, last in own.items():
        every = torch.cat([getattr(base, name), fresh[name], last, torch.zeros_like(last)], dim=1)
        columns[name] = _pick(every, source)
    columns["time_gap"][:, 1] = 0  # nothing precedes the first event
    return Tokens(
        **columns,
        user=base.user,
        preference=popularity,
        prompt_length=length + 2,
        batch_size=[len(user)],
    )


def _layout(base: Tokens, fresh_kind: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return the source of every column, int64 [B, T], and how many past tokens there are [B]."""
    size = base.kind.shape[1]
    logged = base.prompt_length - 2
    new = known.sum(1)
    old = torch.minimum(logged, size - 2 - new)

    def headless(index: Tensor) -> Tensor:  # an ITEM whose ENVIRONMENT token fell off the window
        kind = torch.cat([base.kind, fresh_kind, torch.zeros_like(fresh_kind[:, :2])], dim=1)
        return (kind.gather(1, index[:, None])[:, 0] == TokenType.ITEM).long()

    cut = headless(torch.where(old > 0, 1 + logged - old, 2 * size - 2)) * (old > 0)
    old = old - cut
    new = new - headless(2 * size - 2 - new) * ((old == 0) & (new == size - 2))
    position = torch.arange(size) - 1
    source = torch.where(
        position < old[:, None],
        1 + (logged - old)[:, None] + position,
        2 * size - 2 - new[:, None] + position - old[:, None],  # today's end at 2T-3, then the E
    )
    source = torch.where(position > (old + new)[:, None], 2 * size - 1, source)
    source[:, 0] = 0
    return source, old + new


def _pick(column: Tensor, index: Tensor) -> Tensor:
    """Return column[b, index[b, ...]] for a column [B, n] or [B, n, c]."""
    if column.ndim == 2:
        return column.gather(1, index)
    return column.gather(1, index[..., None].expand(-1, -1, column.shape[-1]))


def _today_tokens(world: World, moment: Moment) -> tuple[Columns, Tensor, Tensor]:
    """Return two columns an event (E and I; no E for organic views), their times and a mask."""
    organic = moment.action == Action.VIEW
    codes = world.item_codes[moment.item]
    none = torch.full_like(moment.action, int(Action.NONE))

    def pair(first: Tensor, second: Tensor) -> Tensor:
        return torch.stack([first, second], dim=2).flatten(1, 2)

    item_kind = torch.where(organic, int(TokenType.ORGANIC), int(TokenType.ITEM))
    environment = torch.full_like(none, int(TokenType.ENVIRONMENT))
    columns = {
        "kind": pair(environment, item_kind),
        "codes": pair(torch.zeros_like(codes), codes),
        "action": pair(none, moment.action),
        "context": pair(moment.event_context, torch.zeros_like(moment.event_context)),
    }
    times = pair(moment.event_time, moment.event_time)
    return columns, times, pair(moment.kept & ~organic, moment.kept)
