"""Ads and organic items from one content hierarchy: vertical, category, advertiser, item.

Dims: N ads, M organic items, d embedding width.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulators.synthetic.config import WorldConfig
from simulators.world.tables import BID_TYPES

NUM_REGIONS = 8
NUM_DEVICES = 3
NUM_SCENES = 4


@dataclass(frozen=True)
class Catalog:
    """What is on offer. Item rows are in the order of their ids."""

    ads: pd.DataFrame
    """ad_id, vertical, category, advertiser, bid, bid_type, budget, price, target_*, first_day,
    last_day. `bid` is per 1,000 impressions for CPM, per click for CPC, per conversion for OCPA."""
    organic: pd.DataFrame
    """item_id, vertical, category, creator."""
    ad_embedding: NDArray[np.float32]
    """[N, d] content embedding."""
    organic_embedding: NDArray[np.float32]
    """[M, d]."""
    vertical_of_category: NDArray[np.int64]
    """[C]."""


def _hierarchy(config: WorldConfig, rng: np.random.Generator) -> tuple[NDArray, NDArray, NDArray]:
    """Return the embedding of each advertiser and its category and vertical."""
    d = config.embedding_dim
    vertical_of_category = np.sort(np.arange(config.num_categories) % config.num_verticals)
    category_of_advertiser = np.sort(np.arange(config.num_advertisers) % config.num_categories)
    vertical = rng.normal(size=(config.num_verticals, d))
    category = vertical[vertical_of_category] + 0.8 * rng.normal(size=(config.num_categories, d))
    advertiser = category[category_of_advertiser] + 0.5 * rng.normal(
        size=(config.num_advertisers, d)
    )
    return advertiser, category_of_advertiser, vertical_of_category


def _zipf_weights(size: int, rng: np.random.Generator, exponent: float) -> NDArray[np.float64]:
    weight = np.arange(1, size + 1, dtype=float) ** -exponent
    return rng.permutation(weight / weight.sum())


def _targeting(config: WorldConfig, rng: np.random.Generator) -> pd.DataFrame:
    """Return target columns: null admits everyone; an ad that targets picks one or two fields."""
    n = config.num_ads
    targets = rng.random(n) < config.targeting_share
    fields = np.argsort(rng.random((n, 4)), axis=1)  # a random order of gender/region/device/age
    count = rng.integers(1, 3, size=n)
    rank = np.argsort(fields, axis=1)
    on = targets[:, None] & (rank < count[:, None])
    low = rng.integers(18, 45, size=n)
    columns = {
        "target_gender": (on[:, 0], rng.integers(0, 2, size=n)),
        "target_region": (on[:, 1], rng.integers(0, NUM_REGIONS, size=n)),
        "target_device": (on[:, 2], rng.integers(0, NUM_DEVICES, size=n)),
        "target_age_min": (on[:, 3], low),
        "target_age_max": (on[:, 3], low + rng.integers(10, 30, size=n)),
    }
    return _nullable(columns)


def _nullable(columns: dict[str, tuple[NDArray, NDArray]]) -> pd.DataFrame:
    """Return columns of integers, each given as (where there is a value, values); else null."""
    return pd.DataFrame(
        {name: pd.Series(value, dtype="Int64").where(on) for name, (on, value) in columns.items()}
    )


def context_targeting(config: WorldConfig, rng: np.random.Generator) -> pd.DataFrame:
    """Draw which ads ask for hours of the day, which for a scene; null for everyone.

    Hours are inclusive, over midnight where the end is lower. An ad that targets asks for 6 to 14
    hours, for a scene, or for both. No columns if `context_targeting_share` is 0.
    """
    if config.context_targeting_share == 0:
        return pd.DataFrame()
    n = config.num_ads
    targets = rng.random(n) < config.context_targeting_share
    choice = rng.integers(0, 3, size=n)
    hours, scene = targets & (choice != 1), targets & (choice != 0)
    start = rng.integers(0, 24, size=n)
    end = (start + rng.integers(5, 14, size=n)) % 24
    columns = {
        "target_hour_start": (hours, start),
        "target_hour_end": (hours, end),
        "target_scene": (scene, rng.integers(0, NUM_SCENES, size=n)),
    }
    return _nullable(columns)


def make_catalog(config: WorldConfig, rng: np.random.Generator) -> Catalog:
    """Draw ads and organic items.

    `targeting_share` of the ads target; 30 % are born and 30 % retire during the simulated days;
    bids are log-normal around `market_cpm` once converted to eCPM at average response; budgets
    follow Zipf's law over ads.
    """
    n, m = config.num_ads, config.num_organic
    centre, category_of_advertiser, vertical_of_category = _hierarchy(config, rng)
    advertiser = rng.choice(
        config.num_advertisers, size=n, p=_zipf_weights(config.num_advertisers, rng, 0.5)
    )
    creator = rng.integers(0, config.num_advertisers, size=m)
    ad_embedding = centre[advertiser] + 0.5 * rng.normal(size=(n, config.embedding_dim))
    organic_embedding = centre[creator] + 0.5 * rng.normal(size=(m, config.embedding_dim))

    shares = [config.cpm_share, config.cpc_share, 1.0 - config.cpm_share - config.cpc_share]
    bid_type = rng.choice(3, size=n, p=shares)
    level_bid = rng.lognormal(0.0, config.advertiser_bid_spread, config.num_advertisers)[advertiser]
    spread = config.ad_bid_spread
    ecpm = config.market_cpm * level_bid * rng.lognormal(-(spread**2) / 2, spread, size=n)
    per_unit = np.array([1.0, 1000 * config.base_ctr, 1000 * config.base_ctr * config.base_cvr])
    days = config.num_days
    first_day = np.where(rng.random(n) < 0.3, rng.integers(1, days, size=n), 0)
    life = np.where(rng.random(n) < 0.3, rng.integers(3, max(days, 4), size=n), 10 * days)
    budget = config.daily_budget * _zipf_weights(n, rng, 0.8)
    category = category_of_advertiser[advertiser]
    ads = pd.DataFrame(
        {
            "ad_id": np.arange(n),
            "vertical": vertical_of_category[category],
            "category": category,
            "advertiser": advertiser,
            "bid": ecpm / per_unit[bid_type],
            "bid_type": np.array(BID_TYPES)[bid_type],
            "budget": budget,
            "price": rng.lognormal(3.0, 0.8, size=n),
            "first_day": first_day,
            "last_day": np.minimum(first_day + life, 10 * days),
        }
    )
    organic_category = category_of_advertiser[creator]
    organic = pd.DataFrame(
        {
            "item_id": np.arange(m),
            "vertical": vertical_of_category[organic_category],
            "category": organic_category,
            "creator": creator,
        }
    )
    ads = pd.concat([ads, _targeting(config, rng)], axis=1)
    return Catalog(
        ads,
        organic,
        ad_embedding.astype(np.float32),
        organic_embedding.astype(np.float32),
        vertical_of_category,
    )
