"""A world: users, ads, logs, semantic IDs and frozen rankers behind one object.

The hidden truth is not part of it: `simulators.evaluator` reads it from the world's directory.

Dims: B requests, K candidates, N ads, M organic items, U users, R logged requests, L levels.
"""

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from tensordict import TensorDict
from torch import Tensor

from gpr_rl.data.sequences import SequenceBuilder
from gpr_rl.data.streams import IntArray, Today
from gpr_rl.decoding import CodeTrie
from gpr_rl.random import Purpose, uniform
from gpr_rl.schema import Action, InputSpec, Request
from simulators.rewards import Outcome, ecpm
from simulators.world.eligibility import Availability, Targeting
from simulators.world.features import FeatureBuilder, Features, prepared
from simulators.world.history import DAY_S, HOUR_S, History, LoggedRequests
from simulators.world.parts import WorldParts
from simulators.world.placed import PlacedWorld
from simulators.world.tables import AGE_EDGES, BID_TYPES

if TYPE_CHECKING:
    from simulators.world.placed import PlacedWorld


class World:
    """Read-only access to requests, legal ads, candidates' outcomes and training windows.

    Args:
        parts: All that it is made of.
        like: A world to share with: what both make of the same parts is made once.
    """

    def __init__(self, parts: WorldParts, like: "World | None" = None) -> None:
        self.parts, self._like = parts, like
        self.device = torch.device("cpu")
        self.info, self.directory = parts.info, parts.directory
        self.users, self.ads = users, ads = parts.users, parts.ads
        self.organic, self.events = parts.organic, parts.events
        self.num_ads = len(ads)
        self.item_embedding, self.item_codes = parts.item_embedding, parts.item_codes
        self.codes = self.item_codes[: self.num_ads]
        self.spec = InputSpec(
            num_levels=self.info.num_levels,
            num_codes=self.info.num_codes,
            user_cardinalities=tuple(self.info.user_cardinalities),
            context_cardinalities=tuple(self.info.context_cardinalities),
            max_tokens=self.info.max_tokens,
        )
        self.user_attributes = users.loc[:, list(self.info.user_columns)].to_numpy(dtype=np.int64)
        self._user_columns = {
            name: _tensor(users, name) for name in ("age", "gender", "region", "device")
        }
        self.bid, self.price = (_tensor(ads, name, np.float32) for name in ("bid", "price"))
        self.bid_type = torch.from_numpy(
            ads["bid_type"].map({name: i for i, name in enumerate(BID_TYPES)}).to_numpy(copy=True)
        )
        self.ad_advertiser, self._category = (
            _tensor(ads, name) for name in ("advertiser", "category")
        )
        donor = self._donor("events", "users")
        self.log: LoggedRequests = donor.log if donor else LoggedRequests.of(self.events, users)
        self.requests = parts.requests or self.log
        self.request_user, self.request_time = self.requests.user, self.requests.time
        self.request_ad, self.request_action = self.requests.ad, self.requests.action
        self.request_context = self.requests.context
        self.uses_repeats = bool(self.info.ranker_config.get("use_repeats"))
        donor = self._donor("events", "users", "ads", "organic", "uses_repeats")
        self.history: History = (
            donor.history
            if donor
            else History.of_tables(self.events, ads, self.organic, len(users), self.uses_repeats)
        )
        self.group = torch.from_numpy(self.history.group)
        self.features: Features = parts.features or FeatureBuilder(
            self.history, self.user_attributes, self.requests
        )
        self.availability = parts.availability
        donor = self._donor("ads", "availability", "log")
        self.legality: Targeting | Availability
        if donor:
            self.legality = donor.legality
        elif self.availability is None:
            self.legality = Targeting.from_ads(ads)
        else:
            assert self.log.availability is not None
            self.legality = Availability(self.availability, self.log.availability)
        self.rankers, self.logged, self.ranker_card = parts.rankers, parts.logged, parts.ranker_card
        self.alpha = self.logged.get("alpha", torch.zeros(2))
        self.reward_scale = float(self.logged.get("reward_scale", 1.0))
        self.ad_value = self.logged.get("ad_value")

    def replace(self, **changes: Any) -> "World":
        """Return a world with other `WorldParts`; what does not depend on them is shared."""
        return World(replace(self.parts, **changes), like=self)

    def to(self, device: torch.device | str) -> "World | PlacedWorld":
        """Return the world with requests, legal ads and outcomes on a device; itself on the CPU."""
        return self if torch.device(device).type == "cpu" else PlacedWorld(self, device)

    @property
    def is_plain(self) -> bool:
        """Whether outcomes are what the rankers say, in no market with rules of its own."""
        own = self.outcome, self.make_outcome, self.describe
        usual = [World.outcome, World.make_outcome, World.describe]
        return [getattr(x, "__func__", x) for x in own] == usual

    def _donor(self, *names: str) -> "World | None":
        """Return the world to share with if these attributes are the same objects there."""
        like = self._like
        same = like is not None and all(getattr(self, n) is getattr(like, n) for n in names)
        return like if same else None

    @cached_property
    def trie(self) -> CodeTrie:
        """The ads' paths."""
        donor = self._donor("item_codes", "ad_value", "legality")
        if donor and donor.num_ads == self.num_ads and donor.spec.num_codes == self.spec.num_codes:
            return donor.trie
        trie = CodeTrie(self.codes, num_codes=self.info.num_codes, ad_value=self.ad_value)
        trie.signatures(self.legality.ads_of)
        return trie

    @cached_property
    def sequences(self) -> SequenceBuilder:
        """The token streams of all users; unanswered impressions are thinned by a keyed draw."""
        donor = self._donor("info", "history", "item_codes")
        if donor:
            return donor.sequences
        events, history = self.events, self.history
        codes, num_codes = self.codes.numpy(), self.info.num_codes
        request = torch.from_numpy(events["request_id"].to_numpy(copy=True))
        draw = uniform(self.info.seed, Purpose.IMPRESSION_KEPT, request).numpy()
        ignored = (events["action"] == int(Action.IMPRESSION)).to_numpy()
        kept = ~ignored | (draw < self.info.impression_share)
        return SequenceBuilder(
            events[kept].reset_index(drop=True),
            item_codes=self.item_codes.numpy(),
            num_ads=self.num_ads,
            request_context=self.log.context,
            user_attributes=self.user_attributes,
            preference=lambda user_id, timestamp, today: history.popularity(
                user_id, timestamp, codes, num_codes, today
            ),
            max_tokens=self.info.max_tokens,
        )

    @property
    def num_requests(self) -> int:
        """R, logged requests over all days."""
        return len(self.request_user)

    def days(self, split: str) -> Int[Tensor, " D"]:
        """Return the days of `train`, `validation` or `test`, int64."""
        info = self.info
        last = info.num_log_days + info.num_validation_days
        first_and_end = {
            "test": (last, info.num_days),
            "train": (info.num_log_days - info.num_train_days, info.num_log_days),
            "validation": (info.num_log_days, last),
        }
        if split not in first_and_end:
            raise ValueError(f"split must be one of {list(first_and_end)}, got {split!r}")
        return torch.arange(*first_and_end[split])

    @cached_property
    def _splits(self) -> dict[str, Tensor]:
        """Requests with a legal ad by split, as they were asked for."""
        donor = self._donor("info", "requests", "legality")
        return dict(donor._splits) if donor else {}

    def request_ids(self, split: str) -> Int[Tensor, " R"]:
        """Return int64 ids of the `train`, `validation` or `test` requests with a legal ad."""
        if split not in self._splits:
            days = self.days(split)
            day = self.request_time // DAY_S
            ids = np.flatnonzero((day >= int(days[0])) & (day <= int(days[-1])))
            parts = torch.from_numpy(ids).split(8_192)
            self._splits[split] = torch.cat([part[self.eligible(part).any(-1)] for part in parts])
        return self._splits[split]

    def request(self, request_id: Int[Tensor, " B"]) -> Request:
        """Return what the policy may know of requests `request_id`, int64 [B]."""
        ids = request_id.numpy()
        asked = (x[ids] for x in (self.request_user, self.request_time, self.request_context))
        return self.request_at(request_id, *asked)

    def request_at(
        self,
        request_id: Int[Tensor, " B"],
        user_id: IntArray,
        timestamp: IntArray,
        context: IntArray,
        today: Today | None = None,
    ) -> Request:
        """Return what the policy may know of requests that need not be in the log.

        `timestamp` is in seconds since day 0, `context` [B, C]; `today` is of a day in progress:
        what follows the events before `today.since`.
        """
        tokens, _ = self.sequences.tokens(user_id, timestamp, context, today)
        return Request(
            request_id=request_id,
            user_id=torch.from_numpy(user_id),
            timestamp=torch.from_numpy(timestamp),
            tokens=tokens,
            popularity=tokens.preference,  # set at the request itself, so it is P_l(t) of Eq. 6
            batch_size=[len(user_id)],
        )

    def signature(self, request_id: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Return int64 [B]; requests with one number may see the same ads.

        `world.trie.restrict(signature=...)` and the searches take these numbers in the place of
        `eligible`.
        """
        if isinstance(self.legality, Availability):
            return self.legality.row[request_id]
        ids = request_id.numpy()
        user, time = (torch.from_numpy(x[ids]) for x in (self.request_user, self.request_time))
        columns = {name: column[user] for name, column in self._user_columns.items()}
        hour, scene = time % DAY_S // HOUR_S, torch.from_numpy(self.request_context[ids, 0])
        return self.legality.signature(day=time // DAY_S, **columns, hour=hour, scene=scene)

    def eligible(self, request_id: Int[Tensor, " B"]) -> Bool[Tensor, "B N"]:
        """Return bool [B, N], the ads that may be shown in requests `request_id` (int64 [B])."""
        ids = request_id.numpy()
        user, time, scene = (
            torch.from_numpy(x[ids])
            for x in (self.request_user, self.request_time, self.request_context[:, 0])
        )
        return self.eligible_at(user, time, scene, request_id)

    def eligible_at(
        self,
        user_id: Int[Tensor, " B"],
        timestamp: Int[Tensor, " B"],
        scene: Int[Tensor, " B"],
        template: Int[Tensor, " B"],
    ) -> Bool[Tensor, "B N"]:
        """Return bool [B, N], the ads that users may see at a time (s since day 0) and place.

        `template` is a logged request at the same place and time, for worlds whose logs say what
        could be shown; the others ignore it.
        """
        if isinstance(self.legality, Availability):
            return self.legality.eligible(template)
        columns = {name: column[user_id] for name, column in self._user_columns.items()}
        hour = timestamp % DAY_S // HOUR_S
        return self.legality.eligible(timestamp // DAY_S, **columns, hour=hour, scene=scene)

    def user_column(self, name: str) -> Int[Tensor, " U"]:
        """Return `age` (years), `gender`, `region` or `device` of all users, int64 [U]."""
        return self._user_columns[name]

    def __deepcopy__(self, memo: dict) -> "World":
        """Return itself: a world is read-only, and Gymnasium copies what an environment holds."""
        return self

    def outcome(
        self,
        request_id: Int[Tensor, " B"],
        ad_id: Int[Tensor, "B K"],
        *,
        exact: bool = False,
        features: Features | None = None,
    ) -> Outcome:
        """Return what the frozen rankers say of candidates; -1 (padding) is scored as ad 0.

        Environments score in float64 (`exact`, see `FrozenRankers`), training does not. `features`
        are what `prepared` gave for these requests; None builds them.
        """
        inputs, past = (features or self.features)(request_id)
        shown = ad_id.clamp_min(0)
        pctr, pcvr = self.rankers(inputs, past, shown, exact=exact)
        return self.make_outcome(request_id, shown, pctr, pcvr)

    @cached_property
    def advertiser_budget(self) -> Float[Tensor, " A"]:
        """What each advertiser may spend a day, the sum over its ads; null in the table: no limit.

        float64 [A], in currency.
        """
        budget = self.ads["budget"].astype("Float64").fillna(np.inf).to_numpy(dtype=np.float64)
        total = torch.zeros(int(self.ad_advertiser.max()) + 1, dtype=torch.float64)
        return total.index_add_(0, self.ad_advertiser, torch.tensor(budget))

    @cached_property
    def _small_advertiser(self) -> Bool[Tensor, " N"]:
        """Which ads are of an advertiser whose daily budget is below the median advertiser's."""
        budget, advertiser = self.advertiser_budget.numpy(), self.ad_advertiser.numpy()
        median = np.median(budget[np.unique(advertiser)])
        return torch.from_numpy(budget[advertiser] < median)

    def prepared(self, request_id: Int[Tensor, " n"]) -> Features:
        """Return what the rankers take for one of these requests at a time, int64 [1].

        It is built for all n at once, for callers that ask `outcome` one by one.
        """
        if not isinstance(self.features, FeatureBuilder):
            return self.features
        return prepared(self.features, request_id)

    def make_outcome(
        self,
        request_id: Int[Tensor, " B"],
        ad_id: Int[Tensor, "B K"],
        pctr: Float[Tensor, "B K"],
        pcvr: Float[Tensor, "B K"],
    ) -> Outcome:
        """Return the outcome of candidates with given probabilities, all [B, K]."""
        user = torch.from_numpy(self.request_user[request_id.numpy()])
        return self.describe(request_id, user, ad_id, pctr, pcvr, self.bid[ad_id])

    def describe(
        self,
        request_id: Int[Tensor, " B"],
        user_id: Int[Tensor, " B"],
        ad_id: Int[Tensor, "B K"],
        pctr: Float[Tensor, "B K"],
        pcvr: Float[Tensor, "B K"],
        bid: Float[Tensor, "B K"],
    ) -> Outcome:
        """Return the outcome of candidates at given bids, for requests of any origin."""
        bid_type = self.bid_type[ad_id]
        value = ecpm(pctr, pcvr, bid, bid_type)
        shape = ad_id.shape
        values = {
            "request_id": request_id[:, None].expand(shape),
            "user_id": user_id[:, None].expand(shape),
            "ad_id": ad_id,
            "pctr": pctr,
            "pcvr": pcvr,
            "bid": bid,
            "bid_type": bid_type,
            "ecpm": value,
            "advertiser": self.ad_advertiser[ad_id],
            "category": self._category[ad_id],
            "price": self.price[ad_id],
            "alpha": self.alpha.expand(*shape, 2),
            "payment": value,
            "budget_left": torch.ones_like(value),
            "small_advertiser": self._small_advertiser[ad_id],
        }
        # a third of the time of Outcome(...), which counts for batches of one
        return Outcome.from_tensordict(TensorDict._new_unsafe(values, batch_size=shape))

    def outcome_all(self, request_id: Int[Tensor, " B"]) -> Outcome:
        """Return the outcome of every ad for every request, [B, N]."""
        ads = torch.arange(self.num_ads).expand(len(request_id), -1)
        return self.outcome(request_id, ads)


def age_bucket(age: pd.Series) -> IntArray:
    """Return 0..5 for ages in years."""
    return np.digitize(age.to_numpy(), AGE_EDGES).astype(np.int64)


def _tensor(frame: pd.DataFrame, name: str, dtype: type = np.int64) -> Tensor:
    return torch.from_numpy(frame[name].to_numpy(dtype=dtype, copy=True))
