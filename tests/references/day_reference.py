"""AdDay again, slowly: one market, plain loops, the past rebuilt from tables at every request.

Written from the specification (`envs.AdDayEnv`, the docstrings of budgets, pacing and auction), for
comparison with `envs.days.Days`. Taken as given: the drawn arrivals, the keyed draws, the frozen
rankers' network and count features, and the hidden truth's formula.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import pandas as pd
import torch

from gpr_rl.random import Purpose, uniform
from gpr_rl.schema import NUM_TIME_GAPS, Action, TokenType
from simulators.day.day import DayConfig
from simulators.day.pacing import PacingConfig
from simulators.day.traffic import draw_arrivals, traffic_of
from simulators.synthetic.evaluator import read_truth
from simulators.world import World
from simulators.world.features import RankerInput, count_features, repeat_features

DAY_S = 86_400
POSITIVE = (Action.VIEW, Action.CLICK, Action.CONVERSION)
Probabilities = tuple[float, float]
Distort = Callable[[float, float], Probabilities]


@dataclass
class Event:
    """A row of the day's table."""

    time: int
    user: int
    is_ad: bool
    item: int
    action: int
    scene: int = 0
    position: int = 0
    number: int = -1
    slot: int = -1
    is_kept: bool = True
    """Part of the token stream even if nobody reacts."""


@dataclass
class Ask:
    """A request that some ad may answer."""

    number: int
    user: int
    time: int
    scene: int
    position: int
    template: int
    eligible: list[int] = field(default_factory=list)


@dataclass
class Waiting:
    """A conversion on its way."""

    time: int
    event: Event
    price: float


class CountsByHand:
    """Counts of one user's past, as the rankers ask for them."""

    def __init__(self, day: "ReferenceDay", past: list[Event], midnight: int) -> None:
        self.day, self.past, self.since = day, past, midnight - DAY_S

    def of(self, group: torch.Tensor, ad_id: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[self._features(ad) for ad in ad_id[0].tolist()]])

    def exact(self, group: torch.Tensor, ad_id: torch.Tensor) -> np.ndarray:
        return self.of(group, ad_id).double().numpy()

    def _features(self, ad: int) -> list[float]:
        """Return the count features of an ad; the histogram's columns are `History.counts`'."""
        features: list[float] = []
        kinds = (Action.VIEW, Action.IMPRESSION, Action.CLICK, Action.CONVERSION)
        for name in ("vertical", "category", "advertiser"):
            wanted = self.day.ads[ad][name]
            same = [e for e in self.past if self.day.attribute(e, name) == wanted]
            every = [e.action for e in same]
            old = [e.action for e in same if e.time < self.since]
            histogram = [which.count(kind) for which in (every, old) for kind in kinds]
            features += count_features(torch.tensor(histogram)).tolist()
        if "product_id" in self.day.ads[ad]:
            product = self.day.ads[ad]["product_id"]
            repeats = sum(
                e.action in POSITIVE and self.day.attribute(e, "product_id") == product
                for e in self.past
            )
            features += repeat_features(torch.tensor(repeats)).tolist()
        return features

    def recent_of_advertiser(self, ad: int) -> int:
        """Return the impressions of an ad's advertiser, yesterday's and today's."""
        wanted = self.day.ads[ad]["advertiser"]
        return sum(
            e.is_ad and e.time >= self.since and self.day.ads[e.item]["advertiser"] == wanted
            for e in self.past
        )


class ReferenceDay:
    """One day in one market; `ask` for a request, then `answer` it or `refuse` an illegal code."""

    def __init__(
        self,
        world: World,
        rules: DayConfig,
        *,
        root: int,
        seed: int,
        episode: int,
        day: int,
        distort: Distort = lambda pctr, pcvr: (pctr, pcvr),
    ) -> None:
        self.world, self.rules, self.root, self.distort = world, rules, root, distort
        self.seed, self.episode, self.day = seed, episode, day
        self.ads = [
            {name: None if pd.isna(value) else value for name, value in ad.items()}
            for ad in world.ads.to_dict("records")
        ]
        self.organic = world.organic.to_dict("records")
        self.users = world.users.to_dict("records")
        self.truth = read_truth(world) if world.info.has_truth else None
        keys = (torch.tensor([x]) for x in (seed, episode, day))
        arrivals = draw_arrivals(traffic_of(world), root, *keys, rules.num_requests)
        self.num_requests = int(arrivals.count)
        self.asks = [
            Ask(n, *(int(getattr(arrivals, name)[0, n]) for name in (
                "user", "time", "scene", "position", "template")))
            for n in range(self.num_requests)
        ]  # fmt: skip
        self.codes = world.item_codes.tolist()
        self.logs: dict[int, tuple[list[Event], list[Event]]] = {}
        self.table: list[Event] = []
        self.waiting: list[Waiting] = []
        self.number, self.is_over, self.now = -1, False, day * DAY_S
        owners = range(len(world.advertiser_budget))
        self.budget = {owner: float(world.advertiser_budget[owner]) for owner in owners}
        self.spent = dict.fromkeys(owners, 0)  # billionths
        self.pacing = PacingConfig()
        start = self.pacing.start if rules.pacing == "throttling" else 1.0
        self.multiplier = dict.fromkeys(owners, start)
        self.integral, self.error = dict.fromkeys(owners, 0.0), dict.fromkeys(owners, 0.0)
        self.adjusted_at = 0.0
        self.seen_multipliers: set[float] = set()
        self.totals: dict[str, float] = dict.fromkeys(
            ("impressions", "clicks", "conversions", "num_unfilled", "num_illegal"), 0
        )
        self.totals |= dict.fromkeys(("revenue", "advertiser_surplus", "user_value", "gmv"), 0.0)
        self.rival_weight = [1.0] * len(self.ads)
        first_heldout = world.info.num_log_days * 86_400
        for kind, ad, time in world.events[["kind", "item_id", "timestamp"]].itertuples(
            index=False
        ):
            if kind == 1 and time < first_heldout:
                self.rival_weight[ad] += 1.0

    # What has happened.

    def attribute(self, event: Event, name: str) -> Any:
        if event.is_ad:
            return self.ads[event.item][name]
        return self.organic[event.item]["creator" if name == "advertiser" else name]

    def past(self, ask: Ask) -> list[Event]:
        """Return what the user saw and did before a request, oldest first."""
        before, organic = self._log(ask.user)
        views = [e for e in organic if e.time < ask.time]
        shown = [e for e in self.table if e.user == ask.user and e.number < ask.number]
        return before + sorted([*views, *shown], key=lambda e: (e.time, e.is_ad, e.number, e.slot))

    def _log(self, user: int) -> tuple[list[Event], list[Event]]:
        """Return a user's log before midnight, and the day's organic views."""
        if user not in self.logs:
            events, midnight = self.world.events, self.day * DAY_S
            mine = events[events["user_id"] == user].sort_values("timestamp", kind="stable")
            names = ("timestamp", "kind", "item_id", "action", "scene", "position")
            columns = [mine[name].tolist() for name in names]
            rows = zip(*columns, self._kept_of_log(mine), strict=True)
            log = [
                Event(time, user, kind == 1, item, action, scene, position, is_kept=is_kept)
                for time, kind, item, action, scene, position, is_kept in rows
            ]
            self.logs[user] = (
                [e for e in log if e.time < midnight],
                [e for e in log if e.time >= midnight and not e.is_ad],
            )
        return self.logs[user]

    def _kept_of_log(self, log: pd.DataFrame) -> list[bool]:
        request = torch.tensor(log["request_id"].tolist(), dtype=torch.int64)
        draw = uniform(self.world.info.seed, Purpose.IMPRESSION_KEPT, request)
        return (draw < self.world.info.impression_share).tolist()

    def _draw(self, purpose: Purpose, number: int, last: int) -> float:
        keys = (torch.tensor(x) for x in (self.seed, self.episode, number, last))
        return float(uniform(self.root, purpose, *keys))

    def _hour(self, time: int) -> int:
        return time % DAY_S // 3600

    # What a policy may know.

    def observation(self, ask: Ask) -> dict[str, np.ndarray]:
        """Return the observation of a request as it is now, without prefix, level and mask."""
        world, past = self.world, self.past(ask)
        codes, num_ads = self.codes, len(self.ads)
        levels, num_codes = world.info.num_levels, world.info.num_codes
        device = self.users[ask.user]["device"]
        empty, nowhere = [0] * levels, [0] * len(world.info.context_cardinalities)
        tokens: list[tuple] = []  # kind, codes, action, context, time
        for e in past:
            if e.is_ad and e.action == Action.IMPRESSION and not e.is_kept:
                continue
            if e.is_ad:
                place = [e.scene, e.position, self._hour(e.time), device]
                tokens.append((TokenType.ENVIRONMENT, empty, Action.NONE, place, e.time))
                tokens.append((TokenType.ITEM, codes[e.item], e.action, nowhere, e.time))
            else:
                item = codes[num_ads + e.item]
                tokens.append((TokenType.ORGANIC, item, e.action, nowhere, e.time))
        previous = [0, *(t[-1] for t in tokens)]
        own = [ask.scene, ask.position, self._hour(ask.time), device]
        asked = (TokenType.ENVIRONMENT, empty, Action.NONE, own, ask.time)
        gaps = [t[-1] - p for t, p in zip([*tokens, asked], previous, strict=True)]
        room = world.info.max_tokens - 2
        first = max(len(tokens) - room, 0)
        if first < len(tokens) and tokens[first][0] == TokenType.ITEM:
            first += 1  # its ENVIRONMENT token fell off
        window = [*tokens[first:], asked]
        buckets = [0, *(self._bucket(gap) for gap in gaps[first + 1 :])]
        head = (TokenType.USER, empty, Action.NONE, nowhere, 0)
        padding = (TokenType.PAD, empty, Action.NONE, nowhere, 0)
        rows = [head, *window]
        rows += [padding] * (world.info.max_tokens - len(rows))
        gap_column = [0, *buckets]
        gap_column += [0] * (world.info.max_tokens - len(gap_column))
        bought = [e for e in past if e.is_ad and e.action in (Action.CLICK, Action.CONVERSION)]
        share = np.zeros((levels, num_codes), dtype=np.float32)
        for level in range(levels):
            taken = Counter(codes[e.item][level] for e in bought)
            for code, count in taken.items():
                share[level, code] = count / len(bought)
        return {
            "token_kind": np.array([r[0] for r in rows]),
            "token_codes": np.array([r[1] for r in rows]),
            "token_action": np.array([r[2] for r in rows]),
            "token_time_gap": np.array(gap_column),
            "token_context": np.array([r[3] for r in rows]),
            "user": np.array([self.users[ask.user][n] for n in world.info.user_columns]),
            "preference": share,
            "prompt_length": np.array(len(window) + 1),
            "popularity": share,
        }

    @staticmethod
    def _bucket(seconds: int) -> int:
        for bucket in range(NUM_TIME_GAPS - 1):
            if seconds < 2 ** (bucket + 3):
                return bucket
        return NUM_TIME_GAPS - 1

    def scores(self, ask: Ask, ads: list[int]) -> list[Probabilities]:
        """Return pCTR and pCVR of ads under the frozen rankers."""
        world, past = self.world, self.past(ask)
        taken = [e for e in past if e.action in POSITIVE][-20:]
        missing = 20 - len(taken)
        item = [e.item if e.is_ad else len(self.ads) + e.item for e in taken]
        user = [self.users[ask.user][n] for n in world.info.user_columns]
        device = self.users[ask.user]["device"]
        inputs = RankerInput(
            user=torch.tensor([user], dtype=torch.int32),
            context=torch.tensor(
                [[ask.scene, ask.position, self._hour(ask.time), device]], dtype=torch.int32
            ),
            recent_item=torch.tensor([[0] * missing + item], dtype=torch.int32),
            recent_known=torch.tensor([[False] * missing + [True] * len(taken)]),
            recent_action=torch.tensor(
                [[0] * missing + [int(e.action) for e in taken]], dtype=torch.int32
            ),
            batch_size=[1],
        )
        counts = CountsByHand(self, past, self.day * DAY_S)
        pctr, pcvr = world.rankers(inputs, counts, torch.tensor([ads]), exact=True)
        return list(zip(pctr[0].tolist(), pcvr[0].tolist(), strict=True))

    def reality(self, ask: Ask, ad: int) -> Probabilities:
        """Return how likely the user really clicks, and converts after a click."""
        if self.truth is None:
            return self.distort(*self.scores(ask, [ad])[0])
        recent = CountsByHand(self, self.past(ask), self.day * DAY_S).recent_of_advertiser(ad)
        when = ask.time // DAY_S, ask.time % DAY_S // 3600
        one = (torch.tensor([x]) for x in (ask.user, *when, ask.scene, ask.position))
        pctr, pcvr = self.truth.probabilities(*one, torch.tensor([[ad]]), torch.tensor([[recent]]))
        return self.distort(float(pctr), float(pcvr))

    # Which ads.

    def legal(self, ask: Ask) -> list[int]:
        """Return the ads that a request may show, by targeting, dates and the budgets left."""
        user = self.users[ask.user]
        table = self.world.legality.table if hasattr(self.world.legality, "table") else None
        legal = []
        for ad_id, ad in enumerate(self.ads):
            if not self._can_spend(self._owner(ad_id)):
                continue
            if table is not None:
                row = int(self.world.legality.row[ask.template])
                if bool(table[row, ad_id]):
                    legal.append(ad_id)
                continue
            wanted = [(ad[f"target_{n}"], user[n]) for n in ("gender", "region", "device")]
            wanted.append((ad.get("target_scene"), ask.scene))
            if (
                all(target is None or target == value for target, value in wanted)
                and self._is_between(ad["target_age_min"], user["age"], ad["target_age_max"])
                and self._is_between(ad["first_day"], self.day, ad["last_day"])
                and self._is_in_hours(ad, self._hour(ask.time))
            ):
                legal.append(ad_id)
        return legal

    @staticmethod
    def _is_between(low: Any, value: int, high: Any) -> bool:
        return (low is None or low <= value) and (high is None or value <= high)

    def _is_in_hours(self, ad: dict, hour: int) -> bool:
        start, end = ad.get("target_hour_start"), ad.get("target_hour_end")
        if start is None or end is None or start <= end:
            return self._is_between(start, hour, end)
        return hour >= start or hour <= end  # over midnight

    def _owner(self, ad_id: int) -> int:
        return int(self.ads[ad_id]["advertiser"])

    def _can_spend(self, owner: int) -> bool:
        budget = self.budget[owner]
        return math.isinf(budget) or self.spent[owner] < round(budget * 1e9)

    def ad_of(self, codes: list[int], eligible: list[int]) -> int:
        """Return the dearest eligible ad of a path, the lowest id among equals."""
        left = [ad for ad in eligible if self.codes[ad] == codes]
        return max(left, key=lambda ad: (float(self.world.ad_value[ad]), -ad))

    # The course of the day.

    def ask(self) -> Ask | None:
        """Return the next request that some ad may answer; None at midnight."""
        while True:
            self.number += 1
            if self.number >= self.num_requests:
                self._book((self.day + 1) * DAY_S - 1)
                self.is_over = True
                return None
            ask = self.asks[self.number]
            self._book(ask.time)
            self._pace(self.number / self.num_requests)
            ask.eligible = self.legal(ask)
            if self.rules.pacing == "throttling":
                takes_part = {
                    owner: self._draw(Purpose.PACING, ask.number, owner) < multiplier
                    for owner, multiplier in self.multiplier.items()
                }
                ask.eligible = [ad for ad in ask.eligible if takes_part[self._owner(ad)]]
            if ask.eligible:
                return ask
            self.totals["num_unfilled"] += 1

    def _pace(self, elapsed: float) -> None:
        config, passed = self.pacing, elapsed - self.adjusted_at
        if self.rules.pacing == "none" or passed <= 0 or passed < config.interval - 1e-12:
            return
        lowest = math.log(config.minimum)
        for owner, budget in self.budget.items():
            share = self.spent[owner] / 1e9 / budget if budget > 0 else 1.0
            error = elapsed - share
            if self.rules.pacing == "throttling":
                factor = 1 + config.step if error > 0 else 1 - config.step
                changed = self.multiplier[owner] * factor
            else:
                integral = self.integral[owner] + config.integral_gain * error * passed
                integral = min(max(integral, lowest), 0.0)
                slope = (error - self.error[owner]) / passed
                self.integral[owner], self.error[owner] = integral, error
                log = config.proportional_gain * error + integral + config.derivative_gain * slope
                changed = math.exp(min(max(log, lowest), 0.0))
            self.multiplier[owner] = min(max(changed, config.minimum), 1.0)
            self.seen_multipliers.add(self.multiplier[owner])
        self.adjusted_at = elapsed

    def refuse(self) -> None:
        """End the request at hand after an illegal code."""
        self.totals["num_illegal"] += 1
        self.totals["num_unfilled"] += 1

    def answer(self, ad: int) -> dict[str, Any]:
        """Show an ad at the request at hand, if it wins; return what is said at its end."""
        ask = self.asks[self.number]
        candidates = self._candidates(ask, ad)
        said = self.scores(ask, candidates)
        bids = [float(self.world.bid[c]) * self._bid_factor(c) for c in candidates]
        values = [self._ecpm(c, *p, bid) for c, p, bid in zip(candidates, said, bids, strict=True)]
        winners, prices = self._auction(ask, candidates, said, bids, values)
        slots = []
        for slot, (winner, price) in enumerate(zip(winners, prices, strict=True)):
            slots.append(self._show(ask, slot, candidates[winner], price))
        if not winners:
            self.totals["num_unfilled"] += 1
        self.table += [event for event, _ in slots]
        own = winners.index(0) if 0 in winners else -1
        alpha = self.world.alpha.tolist()
        return {
            "answered_request_id": ask.number,
            "ad_id": ad,
            "pctr": said[0][0],
            "pcvr": said[0][1],
            "ecpm": values[0],
            "final_value": values[0] + (alpha[0] * said[0][0] + alpha[1] * said[0][1]) / 2,
            "slot": own,
            "price": prices[own] if own >= 0 else 0.0,
            "charge": sum(paid for _, paid in slots),
            "clicked": own >= 0 and self._is_clicked(slots[own][0]),
        }

    def _is_clicked(self, event: Event) -> bool:
        return event.action == Action.CLICK

    def _bid_factor(self, ad: int) -> float:
        return self.multiplier[self._owner(ad)] if self.rules.pacing == "pid" else 1.0

    def _candidates(self, ask: Ask, ad: int) -> list[int]:
        edges = list(accumulate(self.rival_weight[rival] for rival in ask.eligible))
        candidates = [ad]
        for number in range(self.rules.num_rivals):
            mark = self._draw(Purpose.RIVAL, ask.number, number) * edges[-1]
            place = sum(edge <= mark for edge in edges)
            if ask.eligible[place] not in candidates:
                candidates.append(ask.eligible[place])
        return candidates

    def _ecpm(self, ad: int, pctr: float, pcvr: float, bid: float) -> float:
        kind = self.ads[ad]["bid_type"]
        if kind == "CPM":
            return bid
        return 1000 * bid * pctr * (pcvr if kind == "OCPA" else 1.0)

    def _auction(
        self,
        ask: Ask,
        candidates: list[int],
        said: list[Probabilities],
        bids: list[float],
        values: list[float],
    ) -> tuple[list[int], list[float]]:
        """Return who wins the slots, as places among the candidates, and the prices."""
        rules = self.rules.auction
        ranked = [
            place
            for _, _, place in sorted(
                (-round(value, 6), self._draw(Purpose.AUCTION_TIE, ask.number, c), place)
                for place, (c, value) in enumerate(zip(candidates, values, strict=True))
                if round(value, 6) >= round(rules.reserve_cpm, 6)
            )
        ]
        winners = ranked[: rules.num_slots]
        prices = []
        for slot, place in enumerate(winners):
            if rules.mechanism == "first_price":
                prices.append(bids[place])
                continue
            next_rank = slot + 1 if rules.mechanism == "gsp" else rules.num_slots
            rival = values[ranked[next_rank]] if next_rank < len(ranked) else 0.0
            rate = self._ecpm(candidates[place], *said[place], 1.0)
            least = max(rival, rules.reserve_cpm) / rate if rate > 0 else 0.0
            prices.append(min(least, bids[place]))
        return winners, prices

    def _show(self, ask: Ask, slot: int, ad: int, price: float) -> tuple[Event, float]:
        """Show an ad in a slot; return its event and what is paid at once."""
        has_clicks = self.world.info.has_clicks
        pctr, pcvr = self.reality(ask, ad)
        if has_clicks:
            pctr *= self.rules.auction.effects()[slot]
        clicked = self._draw(Purpose.CLICK, ask.number, slot) < round(pctr, 6)
        converts = clicked and self._draw(Purpose.CONVERSION, ask.number, slot) < round(pcvr, 6)
        kept = self._draw(Purpose.DAY_IMPRESSION_KEPT, ask.number, slot)
        event = Event(
            ask.time,
            ask.user,
            True,
            ad,
            Action.CLICK if clicked and has_clicks else Action.IMPRESSION,
            ask.scene,
            ask.position,
            ask.number,
            slot,
            kept < self.world.info.impression_share,
        )
        self.totals["impressions"] += 1
        self.totals["clicks"] += clicked and has_clicks
        self.totals["user_value"] += clicked and has_clicks
        kind = self.ads[ad]["bid_type"]
        paid = 0.0
        if kind == "CPM":
            paid = self._charge(ad, price / 1000, float(self.world.bid[ad]) / 1000)
        elif kind == "CPC" and clicked:
            paid = self._charge(ad, price, float(self.world.bid[ad]))
        if converts:
            delay = 0
            if has_clicks:
                draw = self._draw(Purpose.CONVERSION_DELAY, ask.number, slot)
                delay = math.ceil(-self.rules.conversion_delay_s * math.log(draw))
            if delay <= self.rules.attribution_window_s:
                self.waiting.append(Waiting(ask.time + delay, event, price))
        return event, paid

    def _charge(self, ad: int, amount: float, worth: float) -> float:
        """Take an amount from an ad's advertiser if it may still spend; return what is paid."""
        owner = self._owner(ad)
        paid = amount if self._can_spend(owner) else 0.0
        self.spent[owner] += round(paid * 1e9)
        self.totals["revenue"] += paid
        self.totals["advertiser_surplus"] += worth - paid
        return paid

    def _book(self, until: int) -> None:
        """Book the conversions up to a second, in order of time."""
        come = [w for w in self.waiting if w.time <= until]
        self.waiting = [w for w in self.waiting if w.time > until]
        for w in sorted(come, key=lambda w: (w.time, w.event.number, w.event.slot)):
            ad = w.event.item
            w.event.action = Action.CONVERSION
            self.totals["conversions"] += 1
            self.totals["user_value"] += 1
            self.totals["gmv"] += float(self.world.price[ad])
            if self.ads[ad]["bid_type"] == "OCPA":
                self._charge(ad, w.price, float(self.world.bid[ad]))

    def open_clicks(self) -> int:
        """Return the clicks whose conversion may still come after midnight."""
        last = (self.day + 1) * DAY_S - 1
        return sum(
            e.action == Action.CLICK and e.time + math.floor(self.rules.attribution_window_s) > last
            for e in self.table
        )
