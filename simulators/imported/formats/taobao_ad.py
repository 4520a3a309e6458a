"""Taobao display ads (Tianchi 56): shown and clicked ads, and what users did in the shop besides.

`raw_sample.csv` (impressions and clicks), `ad_feature.csv` (the ads), `user_profile.csv` and, if it
is there, `behavior_log.csv` (organic views). Behaviour names no item but a category and a brand:
each pair of them is an organic item. Finding the pairs takes one pass over that file.

Ids are integers: an ad has its `adgroup_id`, a pair `-(cate * 10^9 + brand) - 1`, where an unknown
brand is 0.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from simulators.imported.readers.columns import schema
from simulators.imported.readers.log import ItemTable, LogSource, Rows, register_format
from simulators.imported.readers.tables import Table

_PAIR = 1_000_000_000
_SAMPLE = schema(integer="user time_stamp adgroup_id", label="pid clk")
_AD = schema(integer="adgroup_id cate_id brand", label="campaign_id customer", number="price")
_BEHAVIOR = schema(integer="user time_stamp cate brand", text="btag")
_PROFILE = schema(
    integer="userid",
    label="cms_segid cms_group_id final_gender_code age_level pvalue_level shopping_level "
    "occupation new_user_class_level",
)
_NAMES = {
    "user": "user_id",
    "userid": "user_id",
    "time_stamp": "timestamp",
    "adgroup_id": "item_id",
    "pid": "scene",
    "final_gender_code": "gender",
    "cate_id": "category",
    "customer": "advertiser",
}
_CLICK = {"0": "impression", "1": "click"}
_BEHAVIORS = dict.fromkeys(("pv", "cart", "fav", "buy"), "view")


@register_format("taobao_ad")
class TaobaoAd(LogSource):
    """A folder with the files; see the module."""

    title = "Taobao display ads"
    one_row_per_exposure = True

    def __init__(self, source: Path) -> None:
        self._sample = Table(source / "raw_sample.csv", _SAMPLE)
        self._ads = Table(source / "ad_feature.csv", _AD)
        self._profile = Table(source / "user_profile.csv", _PROFILE)
        behavior = source / "behavior_log.csv"
        self._behavior = Table(behavior, _BEHAVIOR) if behavior.exists() else None
        self.notes = (
            "It has clicks but no conversions.",
            "behavior_log.csv is not there, so nothing organic is known."
            if self._behavior is None
            else "An organic item is a pair of category and brand; page views, carts, favourites "
            "and purchases of it all count as views.",
        )

    def rows(self) -> Iterator[Rows]:
        """Yield impressions and clicks, then organic views; see `LogSource`."""
        for piece in self._sample.pieces():
            frame = piece.frame.rename(columns=_NAMES)
            clicked = frame.pop("clk")
            frame["action"] = clicked.map(_CLICK).fillna("clk " + clicked)
            yield replace(piece, frame=frame)
        for piece in self._behavior.pieces() if self._behavior else ():
            frame = piece.frame.rename(columns=_NAMES)
            tag = frame.pop("btag")
            frame["action"] = tag.map(_BEHAVIORS).fillna("btag " + tag)
            frame["item_id"] = _pair_id(frame.pop("cate"), frame.pop("brand"))
            yield replace(piece, frame=frame)

    def items(self) -> ItemTable:
        """Return ads and pairs: words of category, brand, campaign, customer; see `LogSource`."""
        ads = self._ads.read()
        brand = pd.to_numeric(ads["brand"]).fillna(0).astype(np.int64)
        words = _words(ads["cate_id"], brand)
        text = words + " campaign_" + ads["campaign_id"] + " customer_" + ads["customer"]
        ads = ads.rename(columns=_NAMES).drop(columns=["campaign_id", "brand"])
        ads["category"] = ads["category"].astype("str")
        pairs = self._pairs()
        category, brand = pairs // _PAIR, pairs % _PAIR
        organic = pd.DataFrame({"item_id": -pairs - 1, "category": category.astype("str")})
        return ItemTable(
            frame=pd.concat(
                [ads.assign(is_ad=True), organic.assign(is_ad=False)], ignore_index=True
            ),
            text=pd.concat([text, _words(category, brand)], ignore_index=True).fillna(""),
        )

    def users(self) -> pd.DataFrame:
        """Return the profile's columns as labels; see `LogSource`."""
        return self._profile.read_users(_NAMES)

    def _pairs(self) -> pd.Series:
        """Return category * 10^9 + brand of all pairs in the behaviour, sorted."""
        found = np.zeros(0, dtype=np.int64)
        for piece in self._behavior.pieces() if self._behavior else ():
            ids = _pair_id(piece.frame["cate"], piece.frame["brand"]).dropna().to_numpy(np.int64)
            found = np.union1d(found, -ids - 1)
        return pd.Series(found)


def _pair_id(category: pd.Series, brand: pd.Series) -> pd.Series:
    """Return the id of each pair; nothing where the category or the brand can't be read."""
    if category.dtype == np.int64 and brand.dtype == np.int64:
        return -(category * _PAIR + brand) - 1
    brand = brand.where(brand.notna(), 0)
    number = [pd.to_numeric(cells, errors="coerce").astype("Int64") for cells in (category, brand)]
    return -(number[0] * _PAIR + number[1]) - 1


def _words(category: pd.Series, brand: pd.Series) -> pd.Series:
    words = "cate_" + category.astype("str")
    return words.where(brand == 0, words + " brand_" + brand.astype("str"))
