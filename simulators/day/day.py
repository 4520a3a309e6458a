"""Days of traffic in M independent markets: requests, auctions, events, charges, budgets.

Dims: M markets, B requests (of different markets), K candidates of an auction, S ad slots,
P conversions on their way, A advertisers, N ads.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from gpr_rl.checks import check_at_least, check_finite
from gpr_rl.random import Purpose, uniform
from gpr_rl.schema import Action
from simulators.day.auction import AuctionConfig, AuctionResult, charges, run_auction
from simulators.day.budgets import Budgets
from simulators.day.conversions import Conversions, PendingConversions
from simulators.day.live import LiveHistory, Moment
from simulators.day.pacing import Pacing
from simulators.day.reality import reality_of
from simulators.day.traffic import draw_arrivals, traffic_of
from simulators.rewards.outcome import Outcome
from simulators.world import World
from simulators.world.history import DAY_S

MONEY = ("revenue", "advertiser_surplus", "user_value", "gmv")
"""In currency, but `user_value`: clicks and conversions. The true value of an event to an
advertiser is taken to be its bid. They are in different hands, so they are never added up."""
COUNTS = ("impressions", "clicks", "conversions", "num_unfilled", "num_illegal")
_MAX_LOOK_AHEAD = 64
_MAX_DELAY_S = 1e15
"""Longer delays from click to conversion, in seconds, are as good as never."""


@dataclass(frozen=True, kw_only=True)
class DayConfig:
    """The rules of a simulated day."""

    auction: AuctionConfig = field(default_factory=AuctionConfig)
    num_rivals: int = 0
    """Further candidates of every auction, drawn from the eligible ads in proportion to how often
    the logged days show them (plus 1). With 0 the chosen ad meets the reserve price only."""
    pacing: Literal["none", "throttling", "pid"] = "none"
    num_requests: int | None = None
    """Requests of a day; None: as many as the world's users send."""
    conversion_delay_s: float = 4 * 3600.0
    """Mean delay from click to conversion, exponential. A guess; not given in public sources."""
    attribution_window_s: float = 86_400.0
    """A conversion later than this after its click counts for nobody."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_at_least(0, num_rivals=self.num_rivals)
        if self.num_requests is not None:
            check_at_least(1, num_requests=self.num_requests)
        check_finite(0, conversion_delay_s=self.conversion_delay_s)
        check_finite(0, attribution_window_s=self.attribution_window_s)


@dataclass(frozen=True)
class Served:
    """What B requests led to, [B, S] by slot unless said otherwise."""

    moment: Moment
    """The requests."""
    outcome: Outcome
    """Under the rankers, batch [B, K]; candidate 0 is the policy's own."""
    auction: AuctionResult
    ad_id: Tensor
    """-1 where a slot stays empty."""
    clicked: Tensor
    paid: Tensor
    """Charged at once, in currency; conversions are charged when they come."""


class DaySimulator:
    """M days side by side; a market's luck is a function of its seed, episode and actions alone.

    A request is open from `begin` or `advance` until it is served and `advance` moves on.

    Attributes:
        number: int64 [M], the request at hand, counted from 0 within the day.
        over: bool [M], midnight has come.
        eligible: bool [M, N], what may be shown: targeting, active dates, budget, pacing.
        moment: The requests at hand, batch [M].
        totals: Money (float64) and counts (int64) of the day so far, [M] each.
    """

    def __init__(self, world: World, num_markets: int, config: DayConfig, root: int = 0) -> None:
        self.world, self.config, self.root = world, config, root
        self.num_markets = num_markets
        self._traffic, self._reality = traffic_of(world), reality_of(world)
        self.live = LiveHistory(world, num_markets, config.auction.num_slots)
        self.budgets = Budgets(world.advertiser_budget, num_markets)
        self.pacing = Pacing(config.pacing, world.advertiser_budget, num_markets)
        self._pending = PendingConversions()
        self._effect = torch.tensor(config.auction.effects(), dtype=torch.float64)
        logged = torch.from_numpy(world.request_time // DAY_S) < world.info.num_log_days
        shown = torch.bincount(world.request_ad[logged], minlength=world.num_ads)
        self._rival_weight = shown.double() + 1.0
        zero = torch.zeros(num_markets, dtype=torch.int64)
        self.seed, self.episode, self.day = zero, zero.clone(), zero.clone()
        self.number, self.over = zero - 1, torch.ones(num_markets, dtype=torch.bool)
        self.totals = {name: zero.clone() for name in COUNTS}
        self.totals |= {name: zero.double() for name in MONEY}
        self.eligible = torch.zeros(num_markets, world.num_ads, dtype=torch.bool)

    def playable(self, days: Int[Tensor, " D"]) -> Int[Tensor, " _"]:
        """Return the days that have requests."""
        return days[self._traffic.num_requests(days) > 0]

    def begin(
        self,
        rows: Bool[Tensor, " M"],
        seed: Int[Tensor, " M"],
        episode: Int[Tensor, " M"],
        day: Int[Tensor, " M"],
    ) -> None:
        """Start new days of the world in the markets of `rows` and open their first requests.

        `episode` says how many days each market has begun with its `seed`.
        """
        for name, value in (("seed", seed), ("episode", episode), ("day", day)):
            setattr(self, name, torch.where(rows, value, getattr(self, name)))
        keys = seed[rows], episode[rows], day[rows]
        arrivals = draw_arrivals(self._traffic, self.root, *keys, self.config.num_requests)
        self.live.begin(rows, arrivals, (self.root, self.seed, self.episode))
        self.budgets.reset(rows)
        self.pacing.reset(rows)
        self._pending.reset(rows)
        for total in self.totals.values():
            total[rows] = 0
        self.number = self.number.masked_fill(rows, -1)
        self.over = self.over & ~rows
        self.advance(rows)

    def advance(self, rows: Bool[Tensor, " M"]) -> None:
        """Open the next request of `rows` that some ad may answer; the others are unfilled.

        Conversions that came in between are booked first, at midnight all of the day's.
        """
        count = self.live.arrivals.count
        eligible = self.eligible.clone()
        looking, ahead = rows & ~self.over, 0
        while looking.any():
            self.number = self.number + looking.long()
            if ahead:
                self._skip_unfillable(looking, ahead)
            ended = looking & (self.number >= count)
            self._book_conversions(looking, ended)
            self.over = self.over | ended
            looking = looking & ~ended
            index = looking.nonzero()[:, 0]
            if len(index) == 0:
                break
            if self.config.pacing != "none":
                elapsed = torch.where(looking, self.number.double() / count.clamp_min(1), 0.0)
                self.pacing.update(self.budgets.spent, elapsed.clamp(0.0, 1.0))
            eligible[index] = self._eligible(index, self.number[index]) & self._takes_part(index)
            self.totals["num_unfilled"] += looking & ~eligible.any(1)
            looking = looking & ~eligible.any(1)
            ahead = min(max(2 * ahead, 4), _MAX_LOOK_AHEAD)
        self.eligible = eligible
        every = torch.arange(self.num_markets)
        self.moment = self.live.at(every, torch.minimum(self.number, count - 1).clamp_min(0))

    def _eligible(self, market: Tensor, number: Tensor) -> Tensor:
        """Return bool [B, N] by targeting, active dates and budget."""
        user, time, scene, _, template = self.live.arrivals.of(market, number)
        legal = self.world.eligible_at(user, time, scene, template)
        return legal & self.budgets.can_spend()[market][:, self.world.ad_advertiser]

    def _takes_part(self, market: Tensor) -> Tensor:
        """Return bool [B, N] or [1, 1]: whose advertisers pacing lets into the auction."""
        if self.config.pacing != "throttling":
            return torch.ones(1, 1, dtype=torch.bool)
        owner = torch.arange(len(self.world.advertiser_budget)).expand(len(market), -1)
        draw = uniform(self.root, Purpose.PACING, *self._keys(market), owner)
        takes_part = self.pacing.participates(market[:, None].expand_as(owner), owner, draw)
        return takes_part[:, self.world.ad_advertiser]

    def _skip_unfillable(self, rows: Tensor, ahead: int) -> None:
        """Move `number` past requests that no ad may answer, `ahead` at a time.

        Budgets only shrink, so what cannot be answered with today's can't be later; a request
        where this stops is looked at again.
        """
        index = (rows & (self.number < self.live.arrivals.count)).nonzero()[:, 0]
        count, number = self.live.arrivals.count[index, None], self.number[index, None]
        skip = torch.zeros_like(index)
        if self.config.pacing == "none":  # else every request may adjust who takes part
            window = number + torch.arange(ahead)
            flat = torch.minimum(window, count - 1).flatten()
            legal = self._eligible(index.repeat_interleave(ahead), flat).any(1).view(-1, ahead)
            found = legal | (window >= count)
            skip = torch.where(found.any(1), found.to(torch.int8).argmax(1), ahead)
        broke = ~self.budgets.can_spend()[index].any(1)
        skip = torch.where(broke, (count - number)[:, 0], skip)
        self.number[index] += skip
        self.totals["num_unfilled"][index] += skip

    def _keys(self, market: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return seed, episode and request number of markets, [B, 1] each."""
        return tuple(x[market, None] for x in (self.seed, self.episode, self.number))  # type: ignore[return-value]

    def serve(self, market: Int[Tensor, " B"], ad_id: Int[Tensor, " B"]) -> Served:
        """Answer the requests at hand of different markets with one ad each.

        The ad competes with the rivals, winners are shown, users react, charges are settled: the
        impression and the click at once, in order of the slots.
        """
        moment = self.moment.select(market)
        candidate, valid = self._candidates(market, ad_id)
        outcome, bid = self._scored(market, moment, candidate)
        tie = None  # nobody to tie with
        if self.config.num_rivals:
            tie = uniform(self.root, Purpose.AUCTION_TIE, *self._keys(market), candidate)
        auction = run_auction(
            outcome.pctr,
            outcome.pcvr,
            bid,
            outcome.bid_type,
            self.config.auction,
            valid,
            tie_break=tie,
        )
        own = auction.slot_candidate == 0
        outcome.payment = outcome.ecpm.clone()
        outcome.payment[:, 0] = (auction.price_cpm * own).sum(1).float()
        shown, clicked, paid = self._show(market, moment, candidate, auction)
        return Served(moment, outcome, auction, shown, clicked, paid)

    def score(self, market: Int[Tensor, " B"], ad_id: Int[Tensor, "B K"]) -> Outcome:
        """Return what the rankers say of ads for the requests at hand; nothing is shown.

        Bids are paced and budgets are those of now, as in `serve`; the payment is the eCPM.
        """
        outcome, _ = self._scored(market, self.moment.select(market), ad_id)
        outcome.payment = outcome.ecpm.clone()
        return outcome

    def _scored(self, market: Tensor, moment: Moment, candidate: Tensor) -> tuple[Outcome, Tensor]:
        """Return the outcome of candidates [B, K] under the rankers, and their bids, float64."""
        world = self.world
        inputs, past = moment.features(world)
        pctr, pcvr = world.rankers(inputs, past, candidate, exact=True)
        advertiser = world.ad_advertiser[candidate]
        row = market[:, None].expand_as(candidate)
        bid = world.bid[candidate] * self.pacing.bid_multiplier(row, advertiser)
        outcome = world.describe(moment.number, moment.user, candidate, pctr, pcvr, bid.float())
        budget = world.advertiser_budget[advertiser]
        left = self.budgets.remaining()[row, advertiser] / budget
        outcome.budget_left = torch.where(budget > 0, left, 0.0).nan_to_num(nan=1.0).float()
        return outcome, bid

    def _candidates(self, market: Tensor, ad_id: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ad and its rivals, int64 [B, K], and which of them count (no ad twice)."""
        size = self.config.num_rivals
        own = ad_id[:, None]
        if size == 0:
            return own, torch.ones_like(own, dtype=torch.bool)
        weight = (self._rival_weight * self.eligible[market]).cumsum(1)
        draw = uniform(self.root, Purpose.RIVAL, *self._keys(market), torch.arange(size))
        rival = torch.searchsorted(weight, draw * weight[:, -1:], right=True)
        candidate = torch.cat([own, rival.clamp_max(self.world.num_ads - 1)], dim=1)
        same = candidate[:, :, None] == candidate[:, None]
        return candidate, ~same.tril(-1).any(-1)

    def _show(
        self, market: Tensor, moment: Moment, candidate: Tensor, auction: AuctionResult
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return shown ads, clicks and what was paid at once, [B, S]; book everything."""
        world = self.world
        filled = auction.slot_candidate >= 0
        shown = candidate.gather(1, auction.slot_candidate.clamp_min(0)).where(filled, -1)
        pctr, pcvr = (p.double() for p in self._reality(moment, shown))
        pctr = pctr * self._effect if world.info.has_clicks else pctr
        slot = torch.arange(shown.shape[1])
        keys = self._keys(market)
        clicked = filled & (uniform(self.root, Purpose.CLICK, *keys, slot) < _decided(pctr))
        bid_type = world.bid_type[shown.clamp_min(0)]
        owner = world.ad_advertiser[shown.clamp_min(0)]
        none = torch.zeros_like(filled)
        clicks = clicked if world.info.has_clicks else none
        due = charges(auction.price, bid_type, filled, clicked, none)
        row = market[:, None].expand_as(shown)
        paid = self.budgets.settle(row.flatten(), owner.flatten(), due.flatten()).view_as(due)
        bid = world.bid[shown.clamp_min(0)]
        surplus = charges(bid, bid_type, filled, clicked, none) - paid
        action = int(Action.IMPRESSION) + (int(Action.CLICK) - int(Action.IMPRESSION)) * clicks
        self.live.record(market, moment.number, shown, action)
        self._add(
            market,
            impressions=filled,
            clicks=clicks,
            num_unfilled=~filled.any(1),
            revenue=paid,
            advertiser_surplus=surplus,
            user_value=clicks,
        )
        at = clicked.nonzero().unbind(1)
        if len(at[0]):
            click = Conversions(
                market=market[at[0]],
                number=moment.number[at[0]],
                slot=at[1],
                ad_id=shown[at],
                price=auction.price[at],
                time=moment.time[at[0]],
            )
            self._await_conversions(click, pcvr[at])
        return shown, clicks, paid

    def _await_conversions(self, click: Conversions, pcvr: Tensor) -> None:
        """Draw which of C clicks convert and when; at once in worlds without clicks."""
        keys = self.seed[click.market], self.episode[click.market], click.number, click.slot
        converts = uniform(self.root, Purpose.CONVERSION, *keys) < _decided(pcvr)
        draw = uniform(self.root, Purpose.CONVERSION_DELAY, *keys)
        mean = self.config.conversion_delay_s if self.world.info.has_clicks else 0.0
        delay = (-mean * torch.log(draw)).ceil().clamp_max(_MAX_DELAY_S).long()
        counts = converts & (delay <= self.config.attribution_window_s)
        self._pending.add(replace(click, time=click.time + delay).rows(counts))

    def _book_conversions(self, rows: Tensor, ended: Tensor) -> None:
        """Book the conversions of `rows` up to the request at hand, or midnight where it ended."""
        arrivals = self.live.arrivals
        last = torch.minimum(self.number, arrivals.count - 1).clamp_min(0)
        every = torch.arange(self.num_markets)
        at_hand = arrivals.time[every, last].long()
        midnight = (self.day + 1) * DAY_S - 1
        come = self._pending.take(rows, torch.where(ended, midnight, at_hand))
        if len(come.market) == 0:
            return
        world = self.world
        bid_type, owner = world.bid_type[come.ad_id], world.ad_advertiser[come.ad_id]
        none, yes = (torch.full_like(come.ad_id, x, dtype=torch.bool) for x in (0, 1))
        due = charges(come.price, bid_type, none, none, yes)
        paid = self.budgets.settle(come.market, owner, due, order=come.time)
        worth = charges(world.bid[come.ad_id], bid_type, none, none, yes)
        self.live.convert(come.market, come.number, come.slot)
        self._add(
            come.market,
            conversions=yes,
            revenue=paid,
            advertiser_surplus=worth - paid,
            user_value=yes,
            gmv=world.price[come.ad_id],
        )

    def _add(self, market: Tensor, **values: Tensor) -> None:
        """Add amounts, [B] or [B, S], to the totals of B rows' markets."""
        for name, value in values.items():
            total = self.totals[name]
            total.index_add_(0, market, value.view(len(value), -1).sum(1).to(total.dtype))

    def open_clicks(self, market: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Return the clicks without a conversion whose attribution window outlasts midnight."""
        end = (self.day[market] + 1) * DAY_S
        window = int(min(self.config.attribution_window_s, _MAX_DELAY_S))
        return self.live.open_clicks(market, end - window)


def _decided(probability: Tensor) -> Tensor:
    """Return what draws are compared with: rounded, so that batch sizes decide alike."""
    return probability.round(decimals=6)
