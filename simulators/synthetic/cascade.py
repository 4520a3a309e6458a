"""The production system that wrote the logs: retrieval, ranking by eCPM, exploration.

Dims: B (user, day) rows, N ads, U users, D days, C categories.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gpr_rl.schema import Action
from simulators.rewards import ecpm
from simulators.synthetic.behavior import HiddenTruth
from simulators.synthetic.config import WorldConfig
from simulators.world.tables import BID_TYPES


@dataclass(frozen=True)
class Cascade:
    """A logging policy with known propensities.

    It estimates every click rate with an error of its own (a stale interest and a noisy one),
    keeps the best `retrieval_share` of the catalogue by estimated interest, and draws from a
    softmax over the estimated log eCPM; a share of the traffic (`exploration`) draws a legal ad
    uniformly.
    """

    affinity: Tensor  # float32 [U, D, C], yesterday's interests with error
    category: Tensor  # int64 [N]
    log_bid: Tensor  # float32 [N], log bid in eCPM units at rate 1
    quality: Tensor  # float32 [N], estimated click quality
    is_cpm: Tensor  # bool [N], paid per impression
    scalars: Tensor
    """float32 [5]: base and match scale of the click logit, `exploration`, `logging_temperature`,
    `retrieval_share`."""

    def distribution(
        self, user_id: Int[Tensor, " B"], day: Int[Tensor, " B"], eligible: Bool[Tensor, "B N"]
    ) -> Float[Tensor, "B N"]:
        """Return the probability of every ad, float32 [B, N]; 0 for illegal ads."""
        base, scale, exploration, temperature, retrieval = self.scalars.tolist()
        affinity = self.affinity[user_id, day]
        interest = affinity.gather(1, self.category.expand(len(user_id), -1))
        logit = base + scale * interest + self.quality
        log_ecpm = self.log_bid + torch.where(
            self.is_cpm, logit.new_zeros(()), torch.nn.functional.logsigmoid(logit)
        )
        kept = eligible.sum(-1).mul(retrieval).ceil().clamp_min(1)
        retrieved = eligible & (interest >= self._threshold(affinity, eligible, kept))
        ranked = torch.softmax((log_ecpm / temperature).masked_fill(~retrieved, -torch.inf), dim=-1)
        uniform = eligible / eligible.sum(-1, keepdim=True).clamp_min(1)
        return ((1 - exploration) * ranked + exploration * uniform).nan_to_num(0.0)

    def _threshold(
        self,
        affinity: Float[Tensor, "B C"],
        eligible: Bool[Tensor, "B N"],
        kept: Float[Tensor, " B"],
    ) -> Float[Tensor, "B 1"]:
        """Return the interest of the kept-th eligible ad; a category's ads share one."""
        count = eligible.float() @ self._member  # [B, C], exact
        value, order = affinity.sort(-1, descending=True)
        reached = count.gather(1, order).cumsum(-1) >= kept[:, None]
        return value.gather(1, reached.to(torch.int8).argmax(-1, keepdim=True))

    @cached_property
    def _member(self) -> Float[Tensor, "N C"]:
        return torch.nn.functional.one_hot(self.category, self.affinity.shape[2]).float()

    def tensors(self) -> dict[str, Tensor]:
        """Return what `Cascade(**tensors)` takes, for saving."""
        return {name: getattr(self, name).contiguous() for name in self.__dataclass_fields__}


def make_cascade(
    config: WorldConfig, truth: HiddenTruth, ads: pd.DataFrame, rng: np.random.Generator
) -> Cascade:
    """Build the production system: the truth of the day before, with errors."""
    users, _, categories = truth.affinity.shape
    stale = torch.cat([truth.affinity[:, :1], truth.affinity[:, :-1]], dim=1)
    error = rng.normal(size=(users, 1, categories)) * config.logging_noise
    conversion = torch.sigmoid(torch.tensor(truth.conversion_base)).item()
    bid = ads["bid"].to_numpy()
    per_click = {"CPM": 1.0, "CPC": 1000.0, "OCPA": 1000.0 * conversion}
    value = bid * ads["bid_type"].map(per_click).to_numpy()
    noise = config.logging_noise * 0.3 * rng.normal(size=config.num_ads)
    return Cascade(
        affinity=(stale + torch.from_numpy(error.astype(np.float32))).contiguous(),
        category=truth.category,
        log_bid=torch.from_numpy(np.log(value).astype(np.float32)),
        quality=truth.click_quality + torch.from_numpy(noise.astype(np.float32)),
        is_cpm=torch.from_numpy((ads["bid_type"] == "CPM").to_numpy(copy=True)),
        scalars=torch.tensor(
            [
                truth.click_base,
                config.match_scale * config.coarse_share**0.5,
                config.exploration,
                config.logging_temperature,
                config.retrieval_share,
            ]
        ),
    )


def market_bids(
    config: WorldConfig,
    truth: HiddenTruth,
    cascade: Cascade,
    ads: pd.DataFrame,
    rng: np.random.Generator,
    num_draws: int = 4_000,
) -> pd.Series:
    """Return the bids, scaled per bid type so that an impression of each is worth `market_cpm`.

    Bids are drawn relative to each other. What a click or a conversion must cost depends on who is
    shown what: a random request, or those to whom production shows the ad (`bids_priced_on`).
    Targeting is drawn apart from interests, so it is left out.
    """
    users, days, _ = truth.affinity.shape
    user = torch.from_numpy(rng.integers(0, users, num_draws))
    day = torch.from_numpy(rng.integers(0, days, num_draws))
    every = torch.arange(len(ads))
    kind = torch.from_numpy(ads["bid_type"].map(BID_TYPES.index).to_numpy(copy=True))
    bid = torch.from_numpy(ads["bid"].to_numpy(dtype=np.float32))
    earned, shown = torch.zeros(len(ads)), torch.zeros(len(ads))
    for part in torch.arange(num_draws).split(500):
        legal = torch.ones(len(part), len(ads), dtype=torch.bool)
        share = legal.float()
        if config.bids_priced_on == "impressions":
            share = cascade.distribution(user[part], day[part], legal)
        afternoon, scene, position = (torch.full_like(part, value) for value in (14, 1, 1))
        pctr, pcvr = truth.probabilities(
            user[part],
            day[part],
            afternoon,
            scene,
            position,
            every.expand(len(part), -1),
            torch.zeros(len(part), len(ads)),
        )
        value = ecpm(pctr, pcvr, bid.expand_as(pctr), kind.expand_as(pctr))
        earned += (share * value).sum(0)
        shown += share.sum(0)
    scale = torch.ones(len(ads))
    for of_type in (kind == index for index in range(len(BID_TYPES))):
        if (mean := earned[of_type].sum() / shown[of_type].sum()) > 0.0:  # some ad has this type
            scale[of_type] = config.market_cpm / mean
    return ads["bid"] * scale.double().numpy()


def price_level(config: WorldConfig, ads: pd.DataFrame, events: pd.DataFrame) -> float:
    """Return what all bids must be multiplied by for logged impressions to earn `market_cpm`.

    What production shows does not depend on it: it compares bids with each other.
    """
    shown = events[events["kind"] == 1]
    if shown.empty:
        return 1.0
    ad = ads.loc[shown["item_id"], ["bid", "bid_type"]]
    paid = ad["bid_type"].map(
        {"CPM": Action.IMPRESSION, "CPC": Action.CLICK, "OCPA": Action.CONVERSION}
    )
    unit = np.where(ad["bid_type"] == "CPM", 1.0, 1_000.0)
    earned = ad["bid"] * unit * (shown["action"].to_numpy() >= paid)
    return config.market_cpm / earned.mean() if earned.any() else 1.0
