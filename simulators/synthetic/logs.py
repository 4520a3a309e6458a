"""The logged traffic: who asked, what the production system showed, what happened.

A day is drawn at once: the logging policy of a user is fixed within a day, so all its requests
are one vectorised draw; fatigue follows from counts of what was drawn.

Dims: R requests of one day, N ads.
"""

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from gpr_rl.schema import Action
from simulators.synthetic.behavior import NUM_POSITIONS, NUM_SCENES, HiddenTruth
from simulators.synthetic.cascade import Cascade
from simulators.synthetic.catalog import Catalog
from simulators.synthetic.config import WorldConfig
from simulators.world import World
from simulators.world.eligibility import Targeting
from simulators.world.history import DAY_S

_USERS_PER_CHUNK = 2_000
_HOUR_PROFILE = 1.0 + 0.8 * np.sin(2 * np.pi * (np.arange(24) - 13) / 24)
HOUR_SHARE = _HOUR_PROFILE / _HOUR_PROFILE.sum()
"""Share of a day's requests in each hour."""
SCENE_SHARE = (0.3, 0.3, 0.25, 0.15)
"""Share of the requests in each scene."""


def _times(
    user: NDArray[np.int64], day: int, phase: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return sorted timestamps per user (sorted), distinct within a user also between phases."""
    hour = rng.choice(24, size=len(user), p=HOUR_SHARE)
    slot = hour * 900 + rng.integers(0, 900, size=len(user))  # a day has 21,600 slots of 4 s
    order = np.lexsort((slot, user))
    slot = slot[order]
    # push equal slots of one user apart: slot[i] >= slot[i-1] + 1 within a user
    index = np.arange(len(user))
    lifted = slot - index + user * 10_000_000
    slot = np.maximum.accumulate(lifted) + index - user * 10_000_000
    start = np.r_[True, user[1:] != user[:-1]] if len(user) else np.zeros(0, bool)
    overflow = np.maximum(slot - (DAY_S // 4 - 1), 0)
    if overflow.any():  # a burst at midnight: shift the user's whole day
        group = np.cumsum(start) - 1
        worst = np.zeros(group[-1] + 1, dtype=np.int64)
        np.maximum.at(worst, group, overflow)
        slot = slot - worst[group]
    return day * DAY_S + slot * 4 + phase


def running_count(*keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many earlier rows share all of the row's keys (rows are in time order)."""
    frame = pd.DataFrame({str(i): key for i, key in enumerate(keys)})
    return frame.groupby(list(frame.columns), sort=False).cumcount().to_numpy()


def simulate_logs(
    config: WorldConfig,
    users: pd.DataFrame,
    catalog: Catalog,
    truth: HiddenTruth,
    cascade: Cascade,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Draw all days of traffic.

    Returns:
        Events in order of (timestamp, user_id): user_id, timestamp (s), kind (0 organic view,
        1 ad impression), item_id, action (an `Action`), request_id (-1 for organic), scene,
        position, propensity (probability with which the ad was shown; NaN for organic) and
        recent_advertiser (impressions of the advertiser today and yesterday before this one).
    """
    targeting = Targeting.from_ads(catalog.ads)
    attribute = {
        name: torch.from_numpy(users[name].to_numpy(copy=True))
        for name in ("age", "gender", "region", "device")
    }
    advertiser = catalog.ads["advertiser"].to_numpy()
    category = catalog.organic["category"].to_numpy()
    size = np.bincount(category, minlength=config.num_categories)
    organic_by_category = np.argsort(category, kind="stable"), np.cumsum(size) - size, size
    frames, yesterday = [], np.zeros((config.num_users, config.num_advertisers), dtype=np.int32)
    for day in range(config.num_days):
        count = rng.poisson(users["activity"].to_numpy())
        user = np.repeat(np.arange(config.num_users), count)
        timestamp = _times(user, day, 2, rng)  # ads at 2 mod 4 seconds, organic views at 0
        scene = _scenes(len(user), rng) if targeting.uses_context else np.zeros_like(user)
        hour = timestamp % DAY_S // 3600
        ad_id, propensity = _draw_ads(
            user, day, hour, scene, targeting, attribute, cascade, rng.random(len(user))
        )
        shown = propensity > 0
        user, timestamp, scene = user[shown], timestamp[shown], scene[shown]
        ad_id, propensity = ad_id[shown], propensity[shown]
        recent = yesterday[user, advertiser[ad_id]] + running_count(user, advertiser[ad_id])
        if not targeting.uses_context:
            scene = _scenes(len(user), rng)
        position = rng.integers(0, NUM_POSITIONS, size=len(user))
        click, conversion = truth.probabilities(
            torch.from_numpy(user),
            torch.full((len(user),), day),
            torch.from_numpy(timestamp % DAY_S // 3600),
            torch.from_numpy(scene),
            torch.from_numpy(position),
            torch.from_numpy(ad_id)[:, None],
            torch.from_numpy(recent)[:, None],
        )
        clicked = rng.random(len(user)) < click[:, 0].numpy()
        converted = clicked & (rng.random(len(user)) < conversion[:, 0].numpy())
        action = np.full(len(user), int(Action.IMPRESSION))
        action[clicked] = int(Action.CLICK)
        action[converted] = int(Action.CONVERSION)
        yesterday = np.zeros_like(yesterday)
        np.add.at(yesterday, (user, advertiser[ad_id]), 1)
        frames.append(
            pd.DataFrame(
                {
                    "user_id": user,
                    "timestamp": timestamp,
                    "kind": 1,
                    "item_id": ad_id,
                    "action": action,
                    "scene": scene,
                    "position": position,
                    "propensity": propensity,
                    "recent_advertiser": recent,
                }
            )
        )
        frames.append(_organic_day(config, users, truth, organic_by_category, day, rng))
    events = pd.concat(frames, ignore_index=True)
    events = events.sort_values(["timestamp", "user_id"], kind="stable", ignore_index=True)
    is_ad = (events["kind"] == 1).to_numpy()
    events["request_id"] = np.where(is_ad, np.cumsum(is_ad) - 1, -1)
    return events


def _scenes(size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return rng.choice(NUM_SCENES, size=size, p=SCENE_SHARE)


def _draw_ads(
    user: NDArray[np.int64],
    day: int,
    hour: NDArray[np.int64],
    scene: NDArray[np.int64],
    targeting: Targeting,
    attribute: dict[str, torch.Tensor],
    cascade: Cascade,
    draw: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the ad and its propensity for each request; propensity 0 where none is legal."""
    # one distribution for all requests of a user, or of a user in an hour and a scene
    ad_id = np.zeros(len(user), dtype=np.int64)
    propensity = np.zeros(len(user))
    key = (user * 24 + hour) * NUM_SCENES + scene if targeting.uses_context else user
    asking, example = np.unique(key, return_index=True)
    for start in range(0, len(asking), _USERS_PER_CHUNK):
        part = slice(start, start + _USERS_PER_CHUNK)
        chunk, who, when, where = (
            torch.from_numpy(x)
            for x in (asking[part], *(y[example[part]] for y in (user, hour, scene)))
        )
        days = torch.full_like(chunk, day)
        columns = {k: v[who] for k, v in attribute.items()}
        eligible = targeting.eligible(days, **columns, hour=when, scene=where)
        probability = cascade.distribution(who, days, eligible).double().numpy()
        total = probability.sum(-1, keepdims=True)
        cumulative = np.cumsum(probability / np.maximum(total, 1e-12), axis=-1)
        rows = np.flatnonzero((key >= chunk[0].item()) & (key <= chunk[-1].item()))
        row = np.searchsorted(chunk.numpy(), key[rows])
        flat = (cumulative + 2 * np.arange(len(chunk))[:, None]).ravel()
        position = np.searchsorted(flat, draw[rows] + 2 * row, side="right")
        chosen = np.clip(position - row * probability.shape[1], 0, probability.shape[1] - 1)
        ad_id[rows], propensity[rows] = chosen, probability[row, chosen]
    return ad_id, propensity


def _organic_day(
    config: WorldConfig,
    users: pd.DataFrame,
    truth: HiddenTruth,
    members: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    day: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Draw a day of organic views: a category by today's interests, an item within it."""
    order, start, size = members  # items by category, and each category's start and size
    rate = users["activity"].to_numpy() * config.organic_per_user / config.impressions_per_user
    user = np.repeat(np.arange(config.num_users), rng.poisson(rate))
    weight = np.exp(1.2 * truth.affinity[:, day].double().numpy()) * (size > 0)
    cumulative = np.cumsum(weight / weight.sum(-1, keepdims=True), axis=-1)
    category = (rng.random(len(user))[:, None] > cumulative[user]).sum(-1)
    category = np.minimum(category, config.num_categories - 1)
    within = (rng.random(len(user)) * size[category]).astype(np.int64)
    return pd.DataFrame(
        {
            "user_id": user,
            "timestamp": _times(user, day, 0, rng),
            "kind": 0,
            "item_id": order[start[category] + within],
            "action": int(Action.VIEW),
            "scene": 0,
            "position": 0,
            "propensity": np.nan,
            "recent_advertiser": 0,
        }
    )


def has_synthetic_places(world: World) -> bool:
    """Return whether scenes and positions are those of synthetic logs, with known shares."""
    return tuple(world.info.context_cardinalities[:2]) == (NUM_SCENES, NUM_POSITIONS)
