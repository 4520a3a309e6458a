"""From visits and promotions to the event table: which exposures are kept, and in which order.

Dims: V visits, G store-weeks, N ads, M organic items.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gpr_rl.data.streams import IntArray
from gpr_rl.schema import Action
from simulators.history import DAY_S
from simulators.journey_tables import Panel, promoted, store_week

NUM_SCENES = 4
_VISITS_PER_CHUNK = 4_096
_CANDIDATES_PER_AD = 5


@dataclass(frozen=True)
class Items:
    """Which products are ads and organic items, and which ads are legal where."""

    ad_product: IntArray  # rising product ids [N]
    organic_product: IntArray  # rising product ids [M]
    place: IntArray  # store-week of each visit [V]
    places: pd.DataFrame  # store_id, week [G]
    available: NDArray[np.bool_]  # [G, N]


def choose_items(
    folder: Path, panel: Panel, logged: pd.DataFrame, num_ads: int, num_organic: int
) -> Items:
    """Choose ads and organic items by what was bought on the log days.

    Args:
        folder: Where the promotions are.
        panel: The cut.
        logged: Its purchases on the log days.
        num_ads: N, the products most often bought while promoted.
        num_organic: M, the products most often bought otherwise.
    """
    places, place = store_week(panel.visits)
    product, visit = logged["product_id"].to_numpy(), logged["visit"].to_numpy()
    # an ad must be bought while promoted, so only products that are bought often can become one
    candidates = _most_frequent(product, _CANDIDATES_PER_AD * num_ads)
    table = promoted(folder, places, candidates)
    column = _position(candidates, product)
    while_promoted = (column >= 0) & table[place[visit], column]
    ad_product = _most_frequent(product[while_promoted], num_ads)
    otherwise = ~(while_promoted & np.isin(product, ad_product))
    return Items(
        ad_product=ad_product,
        organic_product=_most_frequent(product[otherwise], num_organic),
        place=place,
        places=places,
        available=table[:, np.searchsorted(candidates, ad_product)],
    )


def _most_frequent(values: IntArray, size: int) -> IntArray:
    """Return the `size` most frequent values in rising order; ties go to the lowest value."""
    value, count = np.unique(values, return_counts=True)
    return np.sort(value[np.argsort(-count, kind="stable")[:size]])


def _position(values: IntArray, wanted: IntArray) -> IntArray:
    """Return where each of `wanted` is in the rising `values`, -1 if it is not there."""
    index = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    return np.where(values[index] == wanted, index, -1)


def split_purchases(panel: Panel, items: Items) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return bought exposures (visit, item_id: the ad) and other purchases (visit, item_id).

    A purchase of an ad's product where it was not promoted is one of the others.
    """
    visit = panel.purchases["visit"].to_numpy()
    product = panel.purchases["product_id"].to_numpy()
    ad_id = _position(items.ad_product, product)
    shown = (ad_id >= 0) & items.available[items.place[visit], ad_id]
    organic = np.where(shown, -1, _position(items.organic_product, product))
    known = organic >= 0
    return (
        pd.DataFrame({"visit": visit[shown], "item_id": ad_id[shown]}),
        pd.DataFrame({"visit": visit[known], "item_id": organic[known]}),
    )


def sample_exposures(
    items: Items, bought: pd.DataFrame, unbought_per_visit: float, rng: np.random.Generator
) -> tuple[pd.DataFrame, float]:
    """Keep every bought exposure and a constant share of the others.

    Args:
        items: Says what was promoted in each visit's store and week.
        bought: visit and item_id, in order of the visits.
        unbought_per_visit: Mean number of others to keep.
        rng: Keeps each of them independently.

    Returns:
        visit, item_id and action of the exposures kept, and the share of the others.
    """
    num_visits = len(items.place)
    num_unbought = items.available.sum(1)[items.place].sum() - len(bought)
    share = float(unbought_per_visit * num_visits / num_unbought)
    bought_visit, bought_ad = bought["visit"].to_numpy(), bought["item_id"].to_numpy()
    parts = []
    for first in range(0, num_visits, _VISITS_PER_CHUNK):
        legal = items.available[items.place[first : first + _VISITS_PER_CHUNK]]
        kept = legal & (rng.random(legal.shape, dtype=np.float32) < share)
        start, stop = np.searchsorted(bought_visit, [first, first + _VISITS_PER_CHUNK])
        kept[bought_visit[start:stop] - first, bought_ad[start:stop]] = False
        visit, ad_id = np.nonzero(kept)
        parts.append(pd.DataFrame({"visit": visit + first, "item_id": ad_id}))
    unbought = pd.concat(parts, ignore_index=True).assign(action=int(Action.IMPRESSION))
    bought = bought.assign(action=int(Action.CONVERSION))
    return pd.concat([bought, unbought], ignore_index=True), share


def visit_events(
    panel: Panel,
    items: Items,
    exposures: pd.DataFrame,
    others: pd.DataFrame,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Return the event table of `World`: one second per event of a visit, exposures first.

    Args:
        panel: The cut.
        items: Gives each request its store-week, in the column `availability`.
        exposures: visit, item_id and action.
        others: visit and item_id of other purchases.
        rng: Orders the events of a visit.
    """
    others = others.assign(kind=0, action=int(Action.VIEW))
    events = pd.concat([exposures.assign(kind=1), others], ignore_index=True)
    order = np.lexsort((rng.random(len(events)), -events["kind"], events["visit"]))
    events = events.iloc[order].reset_index(drop=True)
    visits = panel.visits
    user, store = visits["user_id"].to_numpy(), visits["store_id"].to_numpy()
    length = np.bincount(events["visit"], minlength=len(visits))
    before = np.cumsum(length) - length
    # no visit begins before the last one has ended: their events must not share a second
    apart = visits["timestamp"].to_numpy() - before + user * 10**10
    start = np.maximum.accumulate(apart) + before - user * 10**10
    elsewhere = np.r_[False, (store[1:] != store[:-1]) & (user[1:] == user[:-1])]
    weekend = (start // DAY_S + 1) % 7 < 2  # day 0 is a Sunday
    visit = events["visit"].to_numpy()
    is_ad = (events["kind"] == 1).to_numpy()
    events = events.drop(columns="visit").assign(
        user_id=user[visit],
        timestamp=start[visit] + np.arange(len(events)) - before[visit],
        scene=np.where(is_ad, (2 * weekend + elsewhere)[visit], 0),
        position=0,
        propensity=np.nan,  # nobody chose these ads for this household
        availability=np.where(is_ad, items.place[visit], 0),
    )
    events = events.sort_values(["timestamp", "user_id"], kind="stable", ignore_index=True)
    is_ad = (events["kind"] == 1).to_numpy()
    return events.assign(request_id=np.where(is_ad, np.cumsum(is_ad) - 1, -1))


def compact_availability(
    events: pd.DataFrame, items: Items
) -> tuple[pd.DataFrame, NDArray[np.bool_]]:
    """Keep the store-weeks that occur in requests, and number them anew in the events.

    Returns:
        The events with the new `availability`, and the legal ads of each store-week, [G', N].
    """
    is_ad = (events["kind"] == 1).to_numpy()
    place = events["availability"].to_numpy()
    used = np.unique(place[is_ad])
    row = np.where(is_ad, np.searchsorted(used, place), 0)
    return events.assign(availability=row), items.available[used]
