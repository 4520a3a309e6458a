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

from simulators.synthetic.behavior import HiddenTruth
from simulators.synthetic.config import WorldConfig


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
    """Return the bids, scaled per bid type so that what production shows earns the market price.

    Bids are drawn relative to each other; what a click or a conversion must cost for a mean eCPM
    of `market_cpm` depends on who is shown what, so it is measured on draws of the cascade.
    """
    users, days, _ = truth.affinity.shape
    user = torch.from_numpy(rng.integers(0, users, num_draws))
    day = torch.from_numpy(rng.integers(0, days, num_draws))
    scaled = ads["bid"].copy()
    units, shown = torch.zeros(3, len(ads)), torch.zeros(len(ads))
    for part in torch.arange(num_draws).split(500):
        legal = torch.ones(len(part), len(ads), dtype=torch.bool)
        probability = cascade.distribution(user[part], day[part], legal)
        afternoon, scene, position = (torch.full_like(part, value) for value in (14, 1, 1))
        candidates = torch.arange(len(ads)).expand(len(part), -1)
        none_seen = torch.zeros(len(part), len(ads))
        pctr, pcvr = truth.probabilities(
            user[part], day[part], afternoon, scene, position, candidates, none_seen
        )
        per_unit = torch.stack([torch.ones_like(pctr), 1000 * pctr, 1000 * pctr * pcvr])
        units += (probability * per_unit).sum(1)
        shown += probability.sum(0)
    for index, name in enumerate(("CPM", "CPC", "OCPA")):
        of_type = (ads["bid_type"] == name).to_numpy()
        earned = (ads["bid"].to_numpy() * units[index].numpy())[of_type].sum()
        if earned > 0.0:  # some ad has this type
            scaled[of_type] *= config.market_cpm / (earned / shown.numpy()[of_type].sum())
    return scaled
