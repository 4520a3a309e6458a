"""Which rows of a log are exposures of ads, which are organic, and which items a world keeps.

Dims: n rows, I items of the log, N ads, M organic items, C candidates, G places.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gpr_rl.data.streams import IntArray
from gpr_rl.random import Purpose
from gpr_rl.schema import Action
from simulators.imported.config import ImportConfig
from simulators.imported.days import DaySplit
from simulators.imported.events import NO_VISIT, attribute, find_visits
from simulators.imported.items import Chosen, most_frequent, positions
from simulators.imported.readers.log import LogSource
from simulators.imported.rows import Log, keyed_draw
from simulators.world.history import DAY_S

_CANDIDATES_PER_AD = 5

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Takes:
    """The rows of a world: user_id, timestamp, item_id, kind, action, scene, place, and visit."""

    exposures: pd.DataFrame
    """Of ads (kind 1), with the time `seen` of their outcome."""
    organic: pd.DataFrame
    """Views, and successes that are no exposures of ads (kind 0)."""
    visits: pd.DataFrame | None
    """Of a log of successes alone (`find_visits`); rows name their visit, or `NO_VISIT`."""
    chosen: Chosen
    offered: BoolArray | None
    """What was offered at each place, [G + 1, N]; None: not known. The last row, for rows without
    a place, is empty."""
    ads_drawn: bool
    """Whether the ads among the items were drawn."""


def choose_takes(
    source: LogSource,
    items: pd.DataFrame,
    log: Log,
    days: DaySplit,
    config: ImportConfig,
    seed: int,
) -> Takes:
    """Attribute outcomes, tell ads from organic items, and keep the most frequent of both.

    What is most frequent, is so on the log days.

    Raises:
        ValueError: Nothing to learn from.
    """
    is_view = (log.rows["action"] == Action.VIEW).to_numpy()
    views, shown = log.rows[is_view], Action.IMPRESSION in log.actions
    # a reader whose rows are exposures with their outcome has attributed them already
    attributed = source.one_row_per_exposure
    exposures = attribute(log.rows[~is_view], 0 if attributed else config.attribution_window_s)
    item = exposures["item"].to_numpy()
    logged = exposures["timestamp"].to_numpy() < days.num_log_days * DAY_S
    success = (exposures["action"] >= Action.CLICK).to_numpy()
    if not (success & logged).any():
        raise ValueError("the log days have no click and no conversion: there is nothing to learn")
    # an ad must be taken where it is offered, so only items that are taken often can become one
    limit = None if config.max_ads is None else _CANDIDATES_PER_AD * config.max_ads
    candidates = most_frequent(item[logged & (shown | success)], limit)
    ads_drawn, organic_too = False, np.ones(len(items), dtype=bool)
    offered = _offers(source, log, items["item_id"].to_numpy()[candidates])
    if offered is None:
        ads_drawn = not shown and "is_ad" not in items
        is_ad = np.ones(len(items), dtype=bool)
        if ads_drawn:
            is_ad = (
                keyed_draw(pd.Index(items["item_id"]), seed, Purpose.IMPORTED_AD) < config.ad_share
            )
        elif "is_ad" in items:
            is_ad = items["is_ad"].astype("boolean").fillna(False).to_numpy(dtype=bool)
        as_ad, organic_too = is_ad[item], ~is_ad
    else:  # an ad is what is taken at an offer
        column, place = positions(candidates, item), exposures["place"].to_numpy()
        as_ad = (column >= 0) & (place >= 0)
        if not shown:  # what was shown was shown, whatever the offers say
            as_ad &= offered[place, column]
    ad_item = most_frequent(item[as_ad & logged], config.max_ads)
    if not len(ad_item):
        raise ValueError("the log days have no exposure of an ad")
    visits = None
    if not shown:
        visits, visit = find_visits(exposures)
        exposures, views = exposures.assign(visit=visit), views.assign(visit=NO_VISIT)
    taken = as_ad & (positions(ad_item, item) >= 0)
    others = exposures[~taken & success & organic_too[item]]
    organic = pd.concat([views, others.assign(action=int(Action.VIEW)).drop(columns="seen")])
    at_log = organic["timestamp"].to_numpy() < days.num_log_days * DAY_S
    organic_item = most_frequent(organic["item"].to_numpy()[at_log], config.max_organic)
    organic = _numbered(organic, organic_item, kind=0)
    return Takes(
        exposures=_numbered(exposures[taken], ad_item, kind=1),
        organic=organic[organic["item_id"] >= 0],
        visits=visits,
        chosen=Chosen(ad_item, organic_item),
        offered=None if offered is None else offered[:, positions(candidates, ad_item)],
        ads_drawn=ads_drawn,
    )


def _numbered(rows: pd.DataFrame, item: IntArray, kind: int) -> pd.DataFrame:
    """Return rows with the numbers of their items, -1 of those that the world does not have."""
    number = positions(item, rows["item"].to_numpy())
    return rows.drop(columns=["item", "value", "price", "bid"]).assign(item_id=number, kind=kind)


def _offers(source: LogSource, log: Log, candidates: NDArray) -> BoolArray | None:
    """Return which of C items were offered at each place, [G + 1, C]; None: not known."""
    if not len(log.places):
        return None
    ids = pd.Index(candidates)
    offered: BoolArray | None = None
    for frame in source.offers():
        if offered is None:
            offered = np.zeros((len(log.places) + 1, len(candidates)), dtype=bool)
        place, item = log.places.get_indexer(frame["place"]), ids.get_indexer(frame["item_id"])
        known = (place >= 0) & (item >= 0)
        offered[place[known], item[known]] = True
    return offered
