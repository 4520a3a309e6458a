"""A world: users, ads, logs, semantic IDs and frozen rankers behind one object.

The hidden truth is not part of it: `simulators.evaluator` reads it from the world's directory.

Dims: B requests, K candidates, N ads, M organic items, U users, R logged requests, L levels.
"""

import copy
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor

from gpr_rl.data.sequences import SequenceBuilder
from gpr_rl.data.streams import IntArray, Today
from gpr_rl.decoding import CodeTrie
from gpr_rl.random import Purpose, uniform
from gpr_rl.schema import Action, InputSpec, Request
from simulators.rewards import Outcome, ecpm
from simulators.world.eligibility import HOURS_PER_DAY, Availability, Targeting
from simulators.world.features import FeatureBuilder, PreparedFeatures
from simulators.world.history import DAY_S, History
from simulators.world.info import WorldInfo
from simulators.world.scoring import WorldRankers
from simulators.world.tables import AGE_EDGES, BID_TYPES

HOUR_S = 3_600


class World:
    """Read-only access to requests, legal ads, candidates' outcomes and training windows."""

    def __init__(
        self,
        info: WorldInfo,
        users: pd.DataFrame,
        ads: pd.DataFrame,
        organic: pd.DataFrame,
        events: pd.DataFrame,
        tensors: dict[str, Tensor],
        directory: Path | None = None,
    ) -> None:
        self.info = info
        self.users, self.ads, self.organic, self.events = users, ads, organic, events
        self.directory = directory
        self.num_ads = len(ads)
        self.item_embedding = tensors["item_embedding"]
        self.item_codes = tensors["item_codes"]
        self.codes = self.item_codes[: self.num_ads]
        self.spec = InputSpec(
            num_levels=info.num_levels,
            num_codes=info.num_codes,
            user_cardinalities=tuple(info.user_cardinalities),
            context_cardinalities=tuple(info.context_cardinalities),
            max_tokens=info.max_tokens,
        )
        group = _groups(ads, organic)
        self.group = torch.from_numpy(group)
        same_ad = _same_ad(ads, organic) if info.ranker_config.get("use_repeats") else None
        self.history = History(as_seen(events), group, len(users), self.num_ads, same_ad)
        requests = events.loc[events["kind"] == 1].reset_index(drop=True)
        self.request_user = requests["user_id"].to_numpy()
        self.request_time = requests["timestamp"].to_numpy()
        self.request_ad = torch.from_numpy(requests["item_id"].to_numpy(copy=True))
        self.request_action = torch.from_numpy(requests["action"].to_numpy(copy=True))
        self.request_context = _context(requests, users, info)
        self.user_attributes = users.loc[:, list(info.user_columns)].to_numpy(dtype=np.int64)
        self.features: FeatureBuilder | PreparedFeatures = FeatureBuilder(
            self.history,
            self.user_attributes,
            self.request_user,
            self.request_time,
            self.request_context,
        )
        if "availability" in tensors:
            self.legality: Targeting | Availability = Availability(
                tensors["availability"],
                torch.from_numpy(requests["availability"].to_numpy(copy=True)),
            )
        else:
            self.legality = Targeting.from_ads(ads)
        self.bid = torch.from_numpy(ads["bid"].to_numpy(dtype=np.float32, copy=True))
        self.bid_type = torch.from_numpy(
            ads["bid_type"].map({name: i for i, name in enumerate(BID_TYPES)}).to_numpy(copy=True)
        )
        self.price = torch.from_numpy(ads["price"].to_numpy(dtype=np.float32, copy=True))
        self.ad_advertiser = torch.from_numpy(ads["advertiser"].to_numpy(dtype=np.int64, copy=True))
        self._category = torch.from_numpy(ads["category"].to_numpy(dtype=np.int64, copy=True))
        self._user_columns = {
            name: torch.from_numpy(users[name].to_numpy(dtype=np.int64, copy=True))
            for name in ("age", "gender", "region", "device")
        }

    def attach_rankers(self, rankers: WorldRankers, scores: dict[str, Tensor], card: dict) -> None:
        """Give the world its frozen rankers and what they said of the logs.

        Args:
            rankers: The reward simulator.
            scores: pctr, pcvr, ecpm, final_value [R] of the logged ads, alpha [2], reward_scale
                and ad_value [N].
            card: The rankers' grades.
        """
        self.rankers, self.logged, self.ranker_card = rankers, scores, card
        self.alpha = scores["alpha"]
        self.reward_scale = float(scores["reward_scale"])
        self.ad_value = scores["ad_value"]
        self.trie = CodeTrie(self.codes, num_codes=self.info.num_codes, ad_value=self.ad_value)

    @cached_property
    def sequences(self) -> SequenceBuilder:
        """The token streams of all users; unanswered impressions are thinned by a keyed draw."""
        events = self.events
        request = torch.from_numpy(events["request_id"].to_numpy(copy=True))
        draw = uniform(self.info.seed, Purpose.IMPRESSION_KEPT, request).numpy()
        ignored = (events["action"] == int(Action.IMPRESSION)).to_numpy()
        kept = ~ignored | (draw < self.info.impression_share)
        return SequenceBuilder(
            events[kept].reset_index(drop=True),
            item_codes=self.item_codes.numpy(),
            num_ads=self.num_ads,
            request_context=self.request_context,
            user_attributes=self.user_attributes,
            preference=self._popularity,
            max_tokens=self.info.max_tokens,
        )

    def _popularity(
        self, user_id: IntArray, timestamp: IntArray, today: Today | None
    ) -> NDArray[np.float32]:
        codes, num_codes = self.codes.numpy(), self.info.num_codes
        return self.history.popularity(user_id, timestamp, codes, num_codes, today)

    @property
    def num_requests(self) -> int:
        """R, logged requests over all days."""
        return len(self.request_user)

    @cached_property
    def _split_days(self) -> dict[str, Int[Tensor, " D"]]:
        info = self.info
        last = info.num_log_days + info.num_validation_days
        return {
            "train": torch.arange(info.num_log_days - info.num_train_days, info.num_log_days),
            "validation": torch.arange(info.num_log_days, last),
            "test": torch.arange(last, info.num_days),
        }

    def days(self, split: str) -> Int[Tensor, " D"]:
        """Return the days of `train`, `validation` or `test`, int64."""
        self._check_split(split)
        return self._split_days[split]

    def _check_split(self, split: str) -> None:
        if split not in self._split_days:
            raise ValueError(f"split must be one of {sorted(self._split_days)}, got {split!r}")

    @cached_property
    def _splits(self) -> dict[str, Tensor]:
        day = self.request_time // DAY_S
        in_split = {
            name: (day >= int(days[0])) & (day <= int(days[-1]))
            for name, days in self._split_days.items()
        }
        splits = {}
        for name, mask in in_split.items():
            ids = torch.from_numpy(np.flatnonzero(mask))
            legal = [self.eligible(part).any(-1) for part in ids.split(8_192)]
            splits[name] = ids[torch.cat(legal)] if legal else ids
        return splits

    def request_ids(self, split: str) -> Int[Tensor, " R"]:
        """Return int64 ids of the `train`, `validation` or `test` requests with a legal ad."""
        self._check_split(split)
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

        Args:
            request_id: int64 [B].
            user_id: int64 [B].
            timestamp: int64 [B], seconds since day 0.
            context: int64 [B, C].
            today: Of a day in progress: what follows the events before `today.since`.
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

    def eligibility_key(self, request_id: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Return int64 keys [B]; requests with one key may see the same ads."""
        if isinstance(self.legality, Availability):
            return self.legality.row[request_id]
        ids = request_id.numpy()
        time = self.request_time[ids]
        key = self.request_user[ids] * self.info.num_days + time // DAY_S
        if self.legality.uses_context:
            hour, scene = time % DAY_S // HOUR_S, self.request_context[ids, 0]
            key = (key * HOURS_PER_DAY + hour) * self.info.context_cardinalities[0] + scene
        return torch.from_numpy(key)

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
        """Return bool [B, N], the ads that users may see at a time and place.

        Args:
            user_id: int64 [B].
            timestamp: int64 [B], seconds since day 0.
            scene: int64 [B].
            template: int64 [B], a logged request at the same place and time, for worlds whose
                logs say what could be shown; the others ignore it.
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
        self, request_id: Int[Tensor, " B"], ad_id: Int[Tensor, "B K"], *, exact: bool = False
    ) -> Outcome:
        """Return what the frozen rankers say of candidates.

        Args:
            request_id: int64 [B].
            ad_id: int64 [B, K]; -1 (padding) is scored as ad 0 and must be masked by the caller.
            exact: Score in float64; see `FrozenRankers`. Environments do, training does not.
        """
        inputs, past = self.features(request_id)
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

    def prepared(self, request_id: Int[Tensor, " n"]) -> "World":
        """Return this world for outcomes of one of these requests at a time, int64 [1].

        What the rankers take is built for all n at once, for callers that ask one by one.
        """
        if not isinstance(self.features, FeatureBuilder):
            return self
        other = copy.copy(self)
        other.features = PreparedFeatures(self.features, request_id)
        return other

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

    def make_outcome_logged(
        self, pctr: Float[Tensor, " R"], pcvr: Float[Tensor, " R"], alpha: Float[Tensor, "2"]
    ) -> Outcome:
        """Return the outcome of all logged ads for given probabilities [R], batch [R, 1]."""
        self.alpha = alpha
        ids = torch.arange(self.num_requests)
        return self.make_outcome(ids, self.request_ad[:, None], pctr[:, None], pcvr[:, None])

    def outcome_all(self, request_id: Int[Tensor, " B"]) -> Outcome:
        """Return the outcome of every ad for every request, [B, N]."""
        ads = torch.arange(self.num_ads).expand(len(request_id), -1)
        return self.outcome(request_id, ads)


def _groups(ads: pd.DataFrame, organic: pd.DataFrame) -> IntArray:
    """Return [N + M, 3] disjoint group numbers of vertical, category and advertiser."""
    columns = [
        np.r_[ads[name].to_numpy(), organic[other].to_numpy()]
        for name, other in (
            ("vertical", "vertical"),
            ("category", "category"),
            ("advertiser", "creator"),
        )
    ]
    offset = np.cumsum([0] + [int(c.max()) + 1 for c in columns[:-1]])
    return np.stack([c + o for c, o in zip(columns, offset, strict=True)], axis=1).astype(np.int64)


def as_seen(events: pd.DataFrame) -> pd.DataFrame:
    """Return events at the time from which on they are part of a user's past.

    Where an outcome came later than its impression, that is the time of the outcome.
    """
    return events.assign(timestamp=events["seen"]) if "seen" in events else events


def _same_ad(ads: pd.DataFrame, organic: pd.DataFrame) -> IntArray:
    """Return the ad with the same `product_id` as each ad and organic item, N for none [N + M]."""
    items = np.r_[ads["product_id"].to_numpy(), organic["product_id"].to_numpy()]
    found = pd.Index(ads["product_id"]).get_indexer(items)
    return np.where(found < 0, len(ads), found).astype(np.int64)


def _context(requests: pd.DataFrame, users: pd.DataFrame, info: WorldInfo) -> IntArray:
    """Return [R, 4]: scene, position, hour of day, device."""
    hour = requests["timestamp"].to_numpy() % DAY_S // 3600
    device = users["device"].to_numpy()[requests["user_id"].to_numpy()]
    columns = [requests["scene"].to_numpy(), requests["position"].to_numpy(), hour, device]
    return np.stack(columns, axis=1).astype(np.int64)


def age_bucket(age: pd.Series) -> IntArray:
    """Return 0..5 for ages in years."""
    return np.digitize(age.to_numpy(), AGE_EDGES).astype(np.int64)


def spread(x: Float[Tensor, " R"]) -> Float[Tensor, ""]:
    """Return the standard deviation; 0 of fewer than two numbers."""
    return x.std() if len(x) > 1 else x.new_zeros(())


def score_scale(outcome_ecpm: Tensor, pctr: Tensor, pcvr: Tensor) -> Tensor:
    """Return alpha [2]: 0.1 std(eCPM) / std(target), 0 for a constant target (GPR Eq. 5)."""
    of_target = torch.stack([spread(pctr), spread(pcvr)])
    return torch.where(
        of_target > 1e-9, 0.1 * spread(outcome_ecpm) / of_target.clamp_min(1e-9), 0.0
    )
