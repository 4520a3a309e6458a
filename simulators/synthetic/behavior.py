"""The hidden truth: who clicks and who converts. Nothing that is trained may read it.

Dims: B requests, K candidates, U users, D days, C categories, N ads, F latent width.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Real
from numpy.typing import NDArray
from torch import Tensor

from simulators.synthetic.catalog import NUM_SCENES, Catalog
from simulators.synthetic.config import WorldConfig

NUM_POSITIONS = 5
NUM_HOURS = 24
LATENT_DIM = 8
_SCALARS = ("click_base", "conversion_base", "match_scale", "coarse_share", "fatigue")
"""The numbers of `HiddenTruth`, in the order of the tensor `scalars` of its file."""


@dataclass(frozen=True)
class HiddenTruth:
    """True click and conversion probabilities of every (request, ad).

    The click logit adds an intercept, the scene, the ad position, the hour, the interest match,
    the ad's quality, its price and the user's fatigue with the advertiser.
    """

    affinity: Tensor  # float32 [U, D, C], standardised
    category: Tensor  # int64 [N], the category behaviour follows (shuffled in the control world)
    user_latent: Tensor  # float32 [U, F]
    ad_latent: Tensor  # float32 [N, F]
    click_quality: Tensor  # float32 [N]
    conversion_quality: Tensor  # float32 [N]
    scene_logit: Tensor  # float32 [NUM_SCENES]
    position_logit: Tensor  # float32 [NUM_POSITIONS]
    hour_logit: Tensor  # float32 [NUM_HOURS]
    click_base: float
    conversion_base: float
    match_scale: float
    coarse_share: float
    fatigue: float

    def probabilities(
        self,
        user_id: Int[Tensor, " B"],
        day: Int[Tensor, " B"],
        hour: Int[Tensor, " B"],
        scene: Int[Tensor, " B"],
        position: Int[Tensor, " B"],
        ad_id: Int[Tensor, "B K"],
        recent_advertiser: Real[Tensor, "B K"],
    ) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K"]]:
        """Return true pCTR and pCVR, both [B, K]; position 0 is the top.

        `recent_advertiser` counts the impressions of the candidate's advertiser that the user saw
        today and yesterday before the request.
        """
        share = self.coarse_share
        coarse = self.affinity[user_id, day].gather(1, self.category[ad_id])
        fine = (self.ad_latent[ad_id] @ self.user_latent[user_id][:, :, None]).squeeze(-1)
        match = share**0.5 * coarse + (1 - share) ** 0.5 * fine  # standardised
        context = self.scene_logit[scene] + self.position_logit[position] + self.hour_logit[hour]
        click = (
            self.click_base
            + context[:, None]
            + self.match_scale * match
            + self.click_quality[ad_id]
            - self.fatigue * torch.log1p(recent_advertiser.float())
        )
        strength = 0.4 * self.match_scale
        conversion = self.conversion_base + strength * match + self.conversion_quality[ad_id]
        return torch.sigmoid(click), torch.sigmoid(conversion)

    def tensors(self) -> dict[str, Tensor]:
        """Return what `from_tensors` takes, for saving."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        numbers = [values.pop(name) for name in _SCALARS]
        tensors = {name: value.contiguous() for name, value in values.items()}
        return tensors | {"scalars": torch.tensor([*numbers, 0.0])}  # the last place is unused

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "HiddenTruth":
        """Return what was saved."""
        numbers = zip(_SCALARS, tensors["scalars"].tolist(), strict=False)
        values: dict[str, Any] = {**tensors, **dict(numbers)}
        del values["scalars"]
        return cls(**values)


def make_truth(
    config: WorldConfig, catalog: Catalog, affinity: NDArray[np.float32], rng: np.random.Generator
) -> HiddenTruth:
    """Draw the hidden behaviour of a world.

    The fine part of the match is the inner product of a user latent with the part of the ad's
    content that its advertiser does not explain, so it can be learned from embeddings. The two
    intercepts are solved for, so that uniformly drawn (user, ad) pairs reach `base_ctr` and
    `base_cvr`.
    """
    ads = catalog.ads
    n, u = config.num_ads, config.num_users
    frame = pd.DataFrame(catalog.ad_embedding)
    residual = (frame - frame.groupby(ads["advertiser"].to_numpy()).transform("mean")).to_numpy()
    ad_latent = residual @ rng.normal(size=(config.embedding_dim, LATENT_DIM))
    ad_latent = _standardised(ad_latent, ad_latent.std())
    price = np.log(ads["price"].to_numpy())
    price = _standardised(price - price.mean(), price.std())
    category = ads["category"].to_numpy()
    hour = np.arange(NUM_HOURS)
    truth = HiddenTruth(
        affinity=torch.from_numpy(affinity),
        category=torch.from_numpy(
            rng.permutation(category) if config.shuffle_tree else category.copy()
        ),
        user_latent=_float(rng.normal(size=(u, LATENT_DIM)) / LATENT_DIM**0.5),
        ad_latent=_float(ad_latent),
        click_quality=_float(config.quality_spread * (rng.normal(size=n) - price / 3)),
        conversion_quality=_float(config.quality_spread * (rng.normal(size=n) - price / 1.5)),
        scene_logit=_float(np.array([0.5, 0.1, -0.3, -1.2])[:NUM_SCENES]),
        position_logit=_float(-0.25 * np.arange(NUM_POSITIONS)),
        hour_logit=_float(0.15 * np.sin(2 * np.pi * (hour - 14) / 24)),
        click_base=0.0,
        conversion_base=0.0,
        match_scale=_rounded(config.match_scale),
        coarse_share=_rounded(config.coarse_share),
        fatigue=_rounded(config.fatigue),
    )
    pairs = 20_000
    user = torch.from_numpy(rng.integers(0, u, pairs))
    day, hour_of_day, scene, position = (
        torch.from_numpy(rng.integers(0, high, pairs))
        for high in (config.num_days, NUM_HOURS, NUM_SCENES, NUM_POSITIONS)
    )
    ad = torch.from_numpy(rng.integers(0, n, (pairs, 1)))
    click, conversion = truth.probabilities(
        user, day, hour_of_day, scene, position, ad, torch.zeros(pairs, 1)
    )
    return replace(
        truth,
        click_base=_intercept(torch.logit(click.double()), config.base_ctr),
        conversion_base=_intercept(torch.logit(conversion.double()), config.base_cvr),
    )


def _standardised(x: NDArray, spread: float) -> NDArray:
    return x / spread if spread > 0.0 else x  # one ad, or one ad per advertiser: no spread


def _float(x: NDArray) -> Tensor:
    return torch.from_numpy(np.asarray(x, dtype=np.float32))


def _rounded(x: float) -> float:
    """Return what a file will hold of a number, so that a world is the same once it is read."""
    return float(np.float32(x))


def _intercept(logit: Tensor, rate: float) -> float:
    """Return what to add to `logit` so that the mean probability is `rate` (bisection)."""
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        if torch.sigmoid(logit + middle).mean() > rate:
            high = middle
        else:
            low = middle
    return _rounded((low + high) / 2)
