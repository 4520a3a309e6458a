"""From the rows of a log to exposures: what was shown to whom, and what became of it.

A log with impressions: each is a request. A click or conversion of its user and item within the
attribution window raises its action and is no event of its own; one without an impression is a
request by itself. As such an outcome comes later than the impression, an exposure has a second time
`seen`: from it on (not before) the exposure is part of the user's history.

A log of successes alone: a visit is a user at a time (and place). What could be shown there is
known from the log's offers, or taken to be the ads that were alive that day. Each success is kept,
and each other ad that could be shown with one constant probability q, independently of all else. A
constant number per visit would be wrong: after the last exposure without a success every further
one would be known to succeed. Each exposure of a visit gets a second of its own, in random order
from the visit's time on, and the visit's organic events follow: so a request sees all earlier
visits and, of its own, only earlier exposures.

Random numbers are drawn in order of time: later rows of a log never change what came before.

Dims: n rows, V visits, E exposures, G places or days, N ads.
"""

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from gpr_rl.data.streams import IntArray
from gpr_rl.schema import Action

NO_VISIT = -1
_DRAWS = 1 << 16
_FAR = 1 << 40


def in_order(rows: pd.DataFrame, *names: str) -> IntArray:
    """Return the order of rows by these columns, the first one above all."""
    return np.lexsort([rows[name].to_numpy() for name in reversed(names)])


def attribute(rows: pd.DataFrame, window_s: int) -> pd.DataFrame:
    """Return one row per exposure, with its final action and the column `seen`.

    These are the rows that open one, in order of time, user and item: impressions, clicks without
    an impression, and conversions without either. An outcome may be up to `window_s` seconds
    later, inclusive.
    """
    rows = rows.iloc[in_order(rows, "user_id", "item", "timestamp", "action")]
    item, time = rows["item"].to_numpy(), rows["timestamp"].to_numpy()
    pair = rows["user_id"].to_numpy(dtype=np.int64) * (int(item.max(initial=0)) + 1) + item
    action = rows["action"].to_numpy()
    final, seen = action.copy(), time.copy()
    opens = action == Action.IMPRESSION
    for outcome in (Action.CLICK, Action.CONVERSION):
        at = np.flatnonzero(action == outcome)
        opener = np.maximum.accumulate(np.where(opens, np.arange(len(rows)), -1))[at]
        found = (opener >= 0) & (pair[opener] == pair[at]) & (time[at] - time[opener] <= window_s)
        opened, first = np.unique(opener[found], return_index=True)
        final[opened] = outcome
        seen[opened] = np.maximum(seen[opened], time[at[found][first]])
        opens[at[~found]] = True
    rows = rows.assign(action=final, seen=seen).loc[opens]
    return rows.iloc[in_order(rows, "timestamp", "user_id", "item")]


def find_visits(rows: pd.DataFrame) -> tuple[pd.DataFrame, IntArray]:
    """Return the visits of the rows with a success, and each row's visit.

    Returns:
        timestamp, user_id, place and scene of the visits, in order of time, [V]; the visit of each
        of the n rows, `NO_VISIT` where it is part of none.
    """
    success = (rows["action"] >= Action.CLICK).to_numpy()
    names = ["timestamp", "user_id", "place"]
    taken = rows.loc[success, [*names, "scene"]]
    row = np.full(len(rows), NO_VISIT, dtype=np.int64)
    row[success] = taken.groupby(names).ngroup()
    return taken.drop_duplicates(names).sort_values(names, ignore_index=True), row


def unbought_share(
    legal: csr_matrix, legal_row: IntArray, num_successes: int, unbought_per_visit: float
) -> float:
    """Return q, with which so many exposures without success are kept per visit, on average.

    `legal` [G, N] has the ads that could be shown in each place, or on each day, `legal_row` the
    row of each visit. Where fewer could be shown, q is 1.
    """
    size = np.diff(legal.indptr)[legal_row].sum() - num_successes
    wanted = unbought_per_visit * len(legal_row)
    return float(wanted / size) if wanted < size else 1.0


def sample_unbought(
    legal: csr_matrix,
    legal_row: IntArray,
    success_visit: IntArray,
    success_ad: IntArray,
    share: float,
    rng: np.random.Generator,
) -> tuple[IntArray, IntArray]:
    """Return visit and ad of the exposures without success that are kept with probability `share`.

    `legal` and `legal_row` are those of `unbought_share`. The gaps between kept cells of the
    (visit, ad) table are geometric, so its other cells need no draw.
    """
    stop = np.cumsum(np.diff(legal.indptr)[legal_row])
    num_cells = int(stop[-1]) if len(stop) else 0
    parts, at = [], -1
    while at < num_cells:
        parts.append(at + np.cumsum(rng.geometric(share, _DRAWS)))
        at = int(parts[-1][-1])
    cell = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
    cell = cell[cell < num_cells]
    visit = np.searchsorted(stop, cell, side="right")
    before = np.r_[0, stop][visit]
    ad_id = legal.indices[legal.indptr[legal_row[visit]] + cell - before].astype(np.int64)
    num_ads = legal.shape[1]
    kept = ~np.isin(visit * num_ads + ad_id, success_visit * num_ads + success_ad)
    return visit[kept], ad_id[kept]


def spread_visits(
    visits: pd.DataFrame, events: pd.DataFrame, rng: np.random.Generator
) -> pd.DataFrame:
    """Return the events of visits with user, place, scene and a second of their own.

    `delay` is the time from the visit to the outcome in seconds. The order of a visit's exposures
    is drawn, and then that of its organic events.
    """
    events = events.iloc[in_order(events, "visit", "kind", "item_id")]
    visit, kind = events["visit"].to_numpy(), events["kind"].to_numpy()
    events = events.iloc[np.lexsort((rng.random(len(events)), -kind, visit))]
    user, time = (visits[name].to_numpy(dtype=np.int64) for name in ("user_id", "timestamp"))
    length = np.bincount(visit, minlength=len(visits))
    place_in_visit = np.arange(len(events)) - np.repeat(np.cumsum(length) - length, length)
    # no visit of a user begins before the last one has ended: events must not share a second
    order = np.lexsort((time, user))
    before = np.cumsum(length[order]) - length[order]
    apart = time[order] - before + user[order] * _FAR
    start = np.empty_like(time)
    start[order] = np.maximum.accumulate(apart) + before - user[order] * _FAR
    second = start[visit] + place_in_visit
    return events.drop(columns=["visit", "delay"]).assign(
        user_id=user[visit],
        timestamp=second,
        seen=second + events["delay"].to_numpy(),
        place=visits["place"].to_numpy()[visit],
        scene=visits["scene"].to_numpy()[visit],
    )


def event_table(events: pd.DataFrame) -> pd.DataFrame:
    """Return the event table of `World`; `seen` stays if an outcome comes after its exposure."""
    order = in_order(events, "timestamp", "user_id", "kind", "item_id")
    names = ["user_id", "timestamp", "kind", "item_id", "action", "scene"]
    names += [name for name in ("availability",) if name in events]
    if (events["seen"].to_numpy() > events["timestamp"].to_numpy()).any():
        names.append("seen")
    table = pd.DataFrame(
        {name: events[name].to_numpy()[order].astype(np.int64, copy=False) for name in names}
    )
    is_ad = (table["kind"] == 1).to_numpy()
    table["scene"] *= is_ad
    return table.assign(
        position=0,
        propensity=np.nan,  # not known
        request_id=np.where(is_ad, np.cumsum(is_ad) - 1, -1),
    )
