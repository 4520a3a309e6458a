"""Users: attributes, power-law activity and drifting interests.

Dims: U users, D days, C categories.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulators.synthetic.catalog import NUM_DEVICES, NUM_REGIONS
from simulators.synthetic.config import WorldConfig

NUM_ACTIVITY_GROUPS = 5


def make_users(config: WorldConfig, rng: np.random.Generator) -> pd.DataFrame:
    """Draw user attributes.

    Returns:
        user_id, age (years), gender, region, device, activity (mean impressions per day),
        activity_group (0..4, quintiles from least to most active: UG1..UG5).
    """
    n = config.num_users
    activity = rng.pareto(2.5, size=n) + 1.0
    activity = np.minimum(activity, 12.0)
    activity *= config.impressions_per_user / config.num_log_days / activity.mean()
    group = (
        np.argsort(np.argsort(activity, kind="stable"), kind="stable") * NUM_ACTIVITY_GROUPS // n
    )
    return pd.DataFrame(
        {
            "user_id": np.arange(n),
            "age": rng.integers(18, 75, size=n),
            "gender": rng.integers(0, 2, size=n),
            "region": rng.choice(NUM_REGIONS, size=n, p=rng.dirichlet(np.full(NUM_REGIONS, 8.0))),
            "device": rng.choice(NUM_DEVICES, size=n, p=[0.5, 0.35, 0.15]),
            "activity": activity,
            "activity_group": group,
        }
    )


def make_interests(
    config: WorldConfig, vertical_of_category: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return each user's affinity to each category on each day, float32 [U, D, C].

    A user holds `num_interests` categories with weights. An interest reaches its category in full
    and the other categories of its vertical at 0.4; each day it moves to another category with
    probability `drift`, half of the time within the vertical. Affinities are standardised over
    everything, so `match_scale` alone sets their size.
    """
    n, k, c = config.num_users, config.num_interests, config.num_categories
    same_vertical = vertical_of_category[:, None] == vertical_of_category[None, :]
    kernel = np.where(np.eye(c, dtype=bool), 1.0, np.where(same_vertical, 0.4, 0.0))
    category = rng.integers(0, c, size=(n, k))
    weight = rng.gamma(2.0, 0.5, size=(n, k))
    taste = 0.25 * rng.normal(size=(n, c))  # a little of everything, constant
    affinity = np.empty((n, config.num_days, c), dtype=np.float32)
    for day in range(config.num_days):
        affinity[:, day] = np.einsum("uk,ukc->uc", weight, kernel[category]) + taste
        moves = rng.random((n, k)) < config.drift
        anywhere = rng.integers(0, c, size=(n, k))
        near = (rng.random((n, k, c)) * same_vertical[category]).argmax(-1)
        target = np.where(rng.random((n, k)) < 0.5, near, anywhere)
        category = np.where(moves, target, category)
        weight = np.maximum(weight * np.exp(0.05 * rng.normal(size=(n, k))), 0.05)
    return (affinity - affinity.mean()) / affinity.std()
