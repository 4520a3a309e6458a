"""Worlds that only speed is measured on: without rankers, and with catalogues of any size.

Dims: N ads, U users, B requests, K candidates, R logged requests.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpr_rl.schema import Action
from simulators.make import synthetic_info
from simulators.rankers.frozen import FrozenRankers, build_rankers
from simulators.rankers.network import Calibration
from simulators.synthetic.behavior import NUM_POSITIONS, NUM_SCENES
from simulators.synthetic.catalog import make_catalog
from simulators.synthetic.config import PRESETS
from simulators.synthetic.users import make_users
from simulators.world import World, WorldInfo, WorldParts
from simulators.world.history import DAY_S
from simulators.world.world import age_bucket

NUM_LEVELS = 3
EVENTS_PER_USER = 100
"""Impressions that a user of a random catalogue had before the days that requests are of."""
MAX_REQUEST_CELLS = 200_000_000
"""R * N at most: a world checks once which requests have an eligible ad."""


def _free_rankers(
    inputs: object, past: object, ad_id: Tensor, *, exact: bool = False
) -> tuple[Tensor, Tensor]:
    """Return 0.5 as pCTR and pCVR of candidates [B, K]."""
    half = torch.full(ad_id.shape, 0.5)
    return half, half.clone()


def _no_inputs(request_id: Tensor) -> tuple[None, None]:
    """In the place of `FeatureBuilder`, whose only readers are the rankers."""
    return None, None


def without_rankers(world: World) -> World:
    """Return the world with rankers that cost nothing; the given world stays as it is."""
    return world.replace(rankers=_free_rankers, features=_no_inputs)


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
    info = replace(
        synthetic_info(config, seed),
        source="random tables",
        num_levels=NUM_LEVELS,
        has_truth=False,
        simulated=(),
    )
    embedding = np.concatenate([catalog.ad_embedding, catalog.organic_embedding])
    codes = streams[2].integers(config.num_codes, size=(len(embedding), NUM_LEVELS))
    parts = WorldParts(
        info=info,
        users=users,
        ads=catalog.ads,
        organic=catalog.organic,
        events=_random_events(info, size, streams[3]),
        item_embedding=torch.from_numpy(embedding),
        item_codes=torch.from_numpy(codes),
    )
    return _with_untrained(World(parts), seed)


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


def _with_untrained(world: World, seed: int) -> World:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rankers = build_rankers(world)
        value = torch.rand(world.num_ads)
    line = torch.tensor([[-8.0, 8.0]] * 2, dtype=torch.float64)
    none = torch.zeros(world.num_requests)
    scores = dict.fromkeys(("pctr", "pcvr", "ecpm", "final_value"), none)
    scores |= {"alpha": torch.ones(2), "reward_scale": torch.ones(()), "ad_value": value}
    frozen = FrozenRankers(rankers, Calibration(line, line.clone()), True)
    return world.replace(rankers=frozen, logged=scores)
