"""Requests and organic events of a world, from the rows of its log.

Dims: n rows, N ads, M organic items, G places or days, V visits.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from gpr_rl.data.streams import IntArray
from gpr_rl.schema import Action
from simulators.imported.config import ImportConfig
from simulators.imported.days import DaySplit
from simulators.imported.events import (
    NO_VISIT,
    event_table,
    sample_unbought,
    spread_visits,
    unbought_share,
)
from simulators.imported.items import Chosen, positions
from simulators.imported.labels import number_scenes
from simulators.imported.readers.log import LogSource
from simulators.imported.rows import Log
from simulators.imported.takes import Takes, choose_takes
from simulators.world.history import DAY_S

_UNBOUGHT_PER_SUCCESS = 3.0


@dataclass(frozen=True)
class Requests:
    """What happens in a world."""

    chosen: Chosen
    events: pd.DataFrame
    """The event table of `World`."""
    num_scenes: int
    first_day: IntArray
    """First and last day on which each ad can be shown, [N]."""
    last_day: IntArray
    availability: NDArray[np.bool_] | None
    """Legal ads where the log says what could be shown, [G, N]."""
    repeat_share: float
    """Share of the log's successes whose user had taken or viewed the product before."""
    unbought_share: float | None
    """q, where exposures were inferred."""
    simulated: tuple[str, ...]
    """What the log does not say."""

    @property
    def success_rate(self) -> float:
        """Share of the exposures that succeed."""
        ads = self.events["kind"] == 1
        return float((self.events.loc[ads, "action"] >= Action.CLICK).mean())


def make_requests(
    source: LogSource,
    items: pd.DataFrame,
    log: Log,
    days: DaySplit,
    config: ImportConfig,
    seed: int,
    rng: np.random.Generator,
) -> Requests:
    """Turn the rows of a log into requests and organic events.

    Raises:
        ValueError: Nothing to learn from.
    """
    takes = choose_takes(source, items, log, days, config, seed)
    alive = _alive(log, takes.chosen.ad)
    share = None
    if takes.visits is None:
        events = pd.concat([takes.exposures, takes.organic.assign(seen=takes.organic["timestamp"])])
    else:
        if takes.offered is None:
            day = np.arange(log.num_days)[:, None]
            table = (alive[0] <= day) & (day <= alive[1])
        else:
            table = takes.offered
        events, share = _infer(takes, takes.visits, csr_matrix(table), days, config, rng)
    is_ad = (events["kind"] == 1).to_numpy()
    scene, num_scenes = number_scenes(events[is_ad], log, config.num_labels)
    events["scene"] = _only_at(is_ad, scene)
    availability = None
    if takes.offered is not None:
        used, row = np.unique(events["place"].to_numpy()[is_ad], return_inverse=True)
        events["availability"] = _only_at(is_ad, row)
        availability = takes.offered[used]
        availability[row, events["item_id"].to_numpy()[is_ad]] = True
    events = event_table(events)
    first_day, last_day = _legal_days(events, alive, availability)
    return Requests(
        chosen=takes.chosen,
        events=events,
        num_scenes=num_scenes,
        first_day=first_day,
        last_day=last_day,
        availability=availability,
        repeat_share=_repeat_share(takes, days),
        unbought_share=share,
        simulated=("impressions",) * (share is not None) + ("ad split",) * takes.ads_drawn,
    )


def _only_at(where: NDArray[np.bool_], values: IntArray) -> IntArray:
    """Return values at the rows where they belong, 0 elsewhere."""
    column = np.zeros(len(where), dtype=np.int64)
    column[where] = values
    return column


def _infer(
    takes: Takes,
    visits: pd.DataFrame,
    legal: csr_matrix,
    days: DaySplit,
    config: ImportConfig,
    rng: np.random.Generator,
) -> tuple[pd.DataFrame, float]:
    """Return the events of a log of successes alone, and q."""
    day = visits["timestamp"].to_numpy() // DAY_S
    legal_row = day if takes.offered is None else visits["place"].to_numpy()
    legal_row = legal_row.astype(np.int64) % legal.shape[0]  # no place is the last row
    visit, ad_id = (takes.exposures[name].to_numpy() for name in ("visit", "item_id"))
    logged = day < days.num_log_days
    num_successes = int(logged[visit].sum())
    wanted = config.unbought_per_visit
    if wanted is None:
        wanted = _UNBOUGHT_PER_SUCCESS * num_successes / max(int(logged.sum()), 1)
    share = unbought_share(legal, legal_row[logged], num_successes, wanted)
    other_visit, other_ad = sample_unbought(legal, legal_row, visit, ad_id, share, rng)
    unbought = pd.DataFrame({"visit": other_visit, "item_id": other_ad, "kind": 1, "delay": 0})
    delay = takes.exposures["seen"] - takes.exposures["timestamp"]
    names = ["visit", "item_id", "kind", "delay", "action"]
    from_visit = takes.organic["visit"] != NO_VISIT
    parts = [
        takes.exposures.assign(delay=delay)[names],
        unbought.assign(action=int(Action.IMPRESSION)),
        takes.organic[from_visit].assign(delay=0)[names],
    ]
    spread = spread_visits(visits, pd.concat(parts, ignore_index=True), rng)
    views = takes.organic[~from_visit].drop(columns="visit")
    return pd.concat([spread, views.assign(seen=views["timestamp"])]), share


def _alive(log: Log, ad_item: IntArray) -> tuple[IntArray, IntArray]:
    """Return the first and last day of any row with each ad, int64 [N] each."""
    ad_id = positions(ad_item, log.rows["item"].to_numpy())
    span = pd.Series(log.day.astype(np.int64)).groupby(ad_id).agg(["min", "max"]).loc[0:]
    return span["min"].to_numpy(), span["max"].to_numpy()


def _legal_days(
    events: pd.DataFrame,
    alive: tuple[IntArray, IntArray],
    availability: NDArray[np.bool_] | None,
) -> tuple[IntArray, IntArray]:
    """Return the first and last day of each ad; no event of the world is outside of them."""
    ads = events[events["kind"] == 1]
    day = ads["timestamp"].to_numpy() // DAY_S
    first, last = alive[0].copy(), alive[1].copy()
    np.minimum.at(first, ads["item_id"], day)
    np.maximum.at(last, ads["item_id"], day)
    if availability is not None:
        at_place = pd.Series(day).groupby(ads["availability"].to_numpy()).agg(["min", "max"])
        early = np.where(availability, at_place["min"].to_numpy()[:, None], first).min(0)
        late = np.where(availability, at_place["max"].to_numpy()[:, None], last).max(0)
        first, last = np.minimum(first, early), np.maximum(last, late)
    return first, last


def _repeat_share(takes: Takes, days: DaySplit) -> float:
    """Return which share of the successes of the log days are of a product taken before."""
    names = ["user_id", "timestamp"]
    success = takes.exposures[takes.exposures["action"] >= Action.CLICK]
    parts = [
        success[names].assign(item=takes.chosen.ad[success["item_id"]], success=True),
        takes.organic[names].assign(
            item=takes.chosen.organic[takes.organic["item_id"]], success=False
        ),
    ]
    rows = pd.concat(parts).sort_values(["user_id", "item", "timestamp"])
    again = rows.duplicated(["user_id", "item"])
    counted = rows["success"] & (rows["timestamp"] < days.num_log_days * DAY_S)
    return float(again[counted].mean())
