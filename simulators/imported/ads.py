"""The table of ads: prices, bids and budgets from the log where it has them, else simulated.

Dims: N ads, I items of the log, n rows.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gpr_rl.data.streams import IntArray
from gpr_rl.schema import Action
from simulators.imported.config import ImportConfig
from simulators.imported.days import DaySplit
from simulators.imported.requests import Requests
from simulators.imported.rows import Log
from simulators.world.history import DAY_S

_TARGETS = ("target_gender", "target_region", "target_device", "target_age_min", "target_age_max")
_PAID = {"CPM": Action.IMPRESSION, "CPC": Action.CLICK, "OCPA": Action.CONVERSION}
_IMPRESSIONS_PER_CPM = 1_000.0


def make_ads(
    items: pd.DataFrame,
    log: Log,
    days: DaySplit,
    requests: Requests,
    config: ImportConfig,
    rng: np.random.Generator,
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return ads with bid, bid_type, budget, price, days and targets, and what was made up.

    Bids are for the deepest action that the log knows, so that eCPM depends on the user: for a
    conversion, or else for a click. A bid that only some ads have is for the others the median one.
    Prices, values and bids of the log days count.

    Raises:
        ValueError: A bid type for an action that the log does not have.
    """
    ad_item, num_ads = requests.chosen.ad, len(requests.chosen.ad)
    known = items.iloc[ad_item].reset_index(drop=True)
    logged = log.rows[log.day < days.num_log_days]
    simulated = []
    price = _either(_medians(ad_item, logged, "price"), known, "price")
    price = np.where(np.isnan(price), _medians(ad_item, logged, "value"), price)
    if np.isnan(price).all():
        simulated.append("prices")
    price = _filled(price, 1.0)
    bid_type = _bid_types(known, log.actions)
    bid = _either(_medians(ad_item, logged, "bid"), known, "bid")
    missing = np.isnan(bid)
    if missing.all():
        spread = config.bid_spread
        bid = config.margin_share * price * rng.lognormal(-0.5 * spread**2, spread, num_ads)
        simulated.append("bids")
    elif missing.any():
        for kind in np.unique(bid_type):
            same = bid_type == kind
            bid[same] = _filled(bid[same], np.nanmedian(bid))
        simulated.append(f"bids of {missing.sum():,} ads")
    budget = known.get("budget", pd.Series(np.nan, index=known.index)).astype("Float64")
    if budget.isna().all():
        cost = _daily_cost(requests.events, bid, bid_type, days.num_log_days)
        share = rng.permutation(np.arange(1, num_ads + 1) ** -0.8)
        budget = pd.Series(config.budget_slack * cost * share / share.sum())
        simulated.append("budgets")
    frame = pd.DataFrame({"ad_id": np.arange(num_ads), "product_id": known["item_id"]})
    frame = frame.assign(bid=bid, bid_type=bid_type, budget=budget, price=price)
    frame = frame.assign(first_day=requests.first_day, last_day=requests.last_day)
    nobody = pd.array([pd.NA] * num_ads, dtype="Int64")  # null: everyone
    return frame.assign(**dict.fromkeys(_TARGETS, nobody)), tuple(simulated)


def _medians(ad_item: IntArray, logged: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """Return the median of what is known and positive for each ad, NaN where nothing is."""
    rows = logged.loc[logged[column] > 0, ["item", column]]
    return rows.groupby("item")[column].median().reindex(ad_item).to_numpy(dtype=np.float64)


def _either(first: NDArray[np.float64], known: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """Return `first`, and the positive values of the item table where it is NaN."""
    if column not in known:
        return first
    other = pd.to_numeric(known[column]).to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where(np.isnan(first) & (other > 0), other, first)


def _filled(values: NDArray[np.float64], otherwise: float) -> NDArray[np.float64]:
    """Return the values, with their median in place of NaN, or `otherwise` if all are NaN."""
    missing = np.isnan(values)
    return np.where(missing, otherwise if missing.all() else np.nanmedian(values), values)


def _bid_types(known: pd.DataFrame, actions: frozenset[Action]) -> NDArray:
    usual = "OCPA" if Action.CONVERSION in actions else "CPC"
    unknown = pd.Series(None, index=known.index, dtype=object)
    found = known.get("bid_type", unknown).fillna(usual).to_numpy(dtype=object)
    for kind in pd.unique(found):
        if kind != "CPM" and _PAID[kind] not in actions:
            name = _PAID[kind].name.lower()
            raise ValueError(f"bid_type {kind} needs the action {name!r}, which the log never has")
    return found


def _daily_cost(
    events: pd.DataFrame, bid: NDArray[np.float64], bid_type: NDArray, num_log_days: int
) -> float:
    """Return what all ads together would have paid per log day at their bids."""
    logged = events["timestamp"] < num_log_days * DAY_S
    exposures = events[(events["kind"] == 1) & logged]
    ad_id, action = exposures["item_id"].to_numpy(), exposures["action"].to_numpy()
    paid_at = np.array([_PAID[kind] for kind in bid_type])[ad_id]
    unit = np.where(bid_type == "CPM", bid / _IMPRESSIONS_PER_CPM, bid)[ad_id]
    return float(unit[action >= paid_at].sum()) / num_log_days
