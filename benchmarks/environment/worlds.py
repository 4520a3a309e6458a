"""Worlds that only speed is measured on: without rankers, and with catalogues of any size.

Dims: N ads, U users, B requests, K candidates, R logged requests.
"""

import copy
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpr_rl.schema import Action
from simulators.rankers.frozen import FrozenRankers, build_rankers
from simulators.rankers.network import Calibration, RankerConfig
from simulators.synthetic.behavior import NUM_HOURS, NUM_POSITIONS, NUM_SCENES
from simulators.synthetic.catalog import NUM_DEVICES, NUM_REGIONS, make_catalog
from simulators.synthetic.config import PRESETS
from simulators.synthetic.users import NUM_ACTIVITY_GROUPS, make_users
from simulators.world.history import DAY_S
from simulators.world.info import WorldInfo
from simulators.world.tables import NUM_AGE_BUCKETS
from simulators.world.world import World, age_bucket

NUM_LEVELS = 3
EVENTS_PER_USER = 100
"""Impressions that a user of a random catalogue had before the days that requests are of."""
MAX_REQUEST_CELLS = 200_000_000
"""R * N at most: a world checks once which requests have an eligible ad."""


class FreeRankers:
    """Rankers that say 0.5 of everything, for the cost of an environment without its rankers."""

    def __call__(
        self, inputs: object, past: object, ad_id: Tensor, *, exact: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return pCTR and pCVR of candidates [B, K]."""
        half = torch.full(ad_id.shape, 0.5)
        return half, half.clone()


def without_rankers(world: World) -> World:
    """Return the world with rankers that cost nothing; the given world stays as it is."""
    free: Any = copy.copy(world)
    free.rankers, free.features = FreeRankers(), lambda request_id: (None, None)
    return free


@dataclass(frozen=True, kw_only=True)
class CatalogueSize:
    """One point of the scaling with the catalogue."""

    num_ads: int
    num_codes: int
    """V of L = 3 levels."""
    num_users: int = 200
    num_requests: int = 4_096
    """R at most, requests to draw from."""


def random_catalogue(size: CatalogueSize, seed: int = 0) -> World:
    """Return a world in memory: a drawn catalogue, random paths and clicks, untrained rankers.

    Speed depends on the sizes alone, so nothing is fitted: every ad's path is uniform over V^3,
    users clicked on 2 % of random ads, and the rankers have the size and inputs of those of
    `small` with random weights and no calibration. Targeting and dates are those of a synthetic
    world.
    """
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4)]
    config = replace(
        PRESETS["small"],
        name=f"random-{size.num_ads}",
        num_ads=size.num_ads,
        num_codes=size.num_codes,
        num_users=size.num_users,
    )
    catalog = make_catalog(config, streams[0])
    users = make_users(config, streams[1])
    users["age_bucket"] = age_bucket(users["age"])
    of_user = (NUM_AGE_BUCKETS, 2, NUM_REGIONS, NUM_DEVICES, NUM_ACTIVITY_GROUPS)
    of_context = (NUM_SCENES, NUM_POSITIONS, NUM_HOURS, NUM_DEVICES)
    num_items = config.num_ads + config.num_organic
    rankers = RankerConfig(
        user_cardinalities=of_user,
        context_cardinalities=of_context,
        num_items=num_items,
        embedding_dim=config.embedding_dim,
        num_groups=config.num_verticals + config.num_categories + config.num_advertisers,
    )
    info = WorldInfo(
        name=config.name,
        seed=seed,
        source="random tables",
        config=config.to_json(),
        num_codes=config.num_codes,
        num_levels=NUM_LEVELS,
        num_log_days=config.num_log_days,
        num_train_days=4,
        num_days=config.num_days,
        has_clicks=True,
        has_truth=False,
        user_cardinalities=of_user,
        context_cardinalities=of_context,
        ranker_config=asdict(rankers),
        impression_share=0.2,
        max_tokens=48,
    )
    codes = streams[2].integers(config.num_codes, size=(num_items, NUM_LEVELS))
    embedding = np.concatenate([catalog.ad_embedding, catalog.organic_embedding])
    tensors = {"item_embedding": torch.from_numpy(embedding), "item_codes": torch.from_numpy(codes)}
    events = _random_events(info, size, streams[3])
    world = World(info, users, catalog.ads, catalog.organic, events, tensors)
    _attach_untrained(world, seed)
    return world


def _random_events(info: WorldInfo, size: CatalogueSize, rng: np.random.Generator) -> pd.DataFrame:
    """Return impressions of random ads, most of them before the days that requests are of."""
    num_past = size.num_users * EVENTS_PER_USER
    num_asked = max(64, min(size.num_requests, MAX_REQUEST_CELLS // size.num_ads))
    first_day = info.num_log_days - info.num_train_days
    total = num_past + num_asked

    def times(first: int, last: int, count: int) -> NDArray[np.int64]:
        return rng.integers(first * DAY_S, last * DAY_S, size=count)

    asked = times(first_day, info.num_days, num_asked)
    clicked = rng.random(total) < 0.02
    return pd.DataFrame(
        {
            "user_id": rng.integers(size.num_users, size=total),
            "timestamp": np.sort(np.r_[times(0, first_day, num_past), asked]),
            "kind": 1,
            "item_id": rng.integers(size.num_ads, size=total),
            "action": np.where(clicked, int(Action.CLICK), int(Action.IMPRESSION)),
            "request_id": np.arange(total),
            "scene": rng.integers(NUM_SCENES, size=total),
            "position": rng.integers(NUM_POSITIONS, size=total),
        }
    )


def _attach_untrained(world: World, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rankers = build_rankers(world)
        value = torch.rand(world.num_ads)
    line = torch.tensor([[-8.0, 8.0]] * 2, dtype=torch.float64)
    none = torch.zeros(world.num_requests)
    scores = dict.fromkeys(("pctr", "pcvr", "ecpm", "final_value"), none)
    scores |= {"alpha": torch.ones(2), "reward_scale": torch.ones(()), "ad_value": value}
    world.attach_rankers(FrozenRankers(rankers, Calibration(line, line.clone()), True), scores, {})
