"""Ads, organic items and their embeddings from the panel's products; bids and budgets are drawn.

Dims: N ads, M organic items, d embedding width.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from gpr_rl.data.streams import IntArray

_SVD_SEED = 0
_TARGETS = ("target_gender", "target_region", "target_device", "target_age_min", "target_age_max")


def item_groups(
    products: pd.DataFrame, num_categories: int, num_manufacturers: int
) -> dict[str, IntArray]:
    """Return department, category and manufacturer numbers of each product.

    Args:
        products: department, product_category and manufacturer_id of N + M products.
        num_categories: The largest ones get numbers from 1 on, 0 is all others.
        num_manufacturers: Likewise.
    """
    return {
        "vertical": pd.factorize(products["department"], sort=True)[0].astype(np.int64),
        "category": _largest(products["product_category"], num_categories),
        "advertiser": _largest(products["manufacturer_id"], num_manufacturers),
    }


def _largest(values: pd.Series, size: int) -> IntArray:
    count = values.value_counts(sort=False).sort_index().sort_values(ascending=False, kind="stable")
    number = pd.Series(np.arange(1, size + 1)[: len(count)], index=count.index[:size])
    return values.map(number).fillna(0).to_numpy(dtype=np.int64)


def embed_items(
    products: pd.DataFrame, bought: pd.DataFrame, text_dim: int, household_dim: int
) -> NDArray[np.float32]:
    """Return what a product is and who buys it, float32 [N + M, text_dim + household_dim].

    The text is department, category, type, brand, manufacturer and package size (TF-IDF); thousands
    of products share all of it, so a smaller part says which households bought the product. Both
    parts are reduced by a truncated SVD.

    Args:
        products: N + M products; a product that is both an ad and an organic item has one
            embedding, and so one path, for both.
        bought: user_id and product_id of purchases before the held-out days.
        text_dim: Width of the first part.
        household_dim: Width of the second.
    """
    distinct = products.drop_duplicates("product_id").reset_index(drop=True)
    words = distinct[["department", "product_category", "product_type"]].agg(" ".join, axis=1)
    tokens = (
        words
        + " brand_"
        + distinct["brand"]
        + " by_"
        + distinct["manufacturer_id"].astype(str)
        + " size_"
        + distinct["package_size"].str.replace(r"\W+", "_", regex=True)
    )
    text = TfidfVectorizer(token_pattern=r"\w+", sublinear_tf=True).fit_transform(tokens)
    row = pd.Index(distinct["product_id"]).get_indexer(bought["product_id"])
    known = row >= 0
    cells = (np.ones(known.sum()), (row[known], bought["user_id"].to_numpy()[known]))
    buyers = coo_matrix(cells, shape=(len(distinct), int(bought["user_id"].max()) + 1)).tocsr()
    buyers.data = np.log1p(buyers.data)
    parts = [
        TruncatedSVD(width, random_state=_SVD_SEED).fit_transform(normalize(matrix))
        for matrix, width in ((text, text_dim), (buyers, household_dim))
    ]
    parts[1] -= parts[1].mean(0)
    embedding = np.concatenate([part / np.sqrt((part**2).mean()) for part in parts], axis=1)
    row = pd.Index(distinct["product_id"]).get_indexer(products["product_id"])
    return embedding[row].astype(np.float32)


def make_ads(
    groups: dict[str, IntArray],
    price: NDArray[np.float64],
    first_day: IntArray,
    last_day: IntArray,
    *,
    daily_conversions: float,
    margin_share: float,
    bid_spread: float,
    budget_slack: float,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Return the table of N ads with simulated bids and budgets.

    Args:
        groups: `item_groups` of the ads.
        price: Median price of each ad's product [N].
        first_day: First and last day of its promotions anywhere [N].
        last_day: See `first_day`.
        daily_conversions: Logged conversions per day.
        margin_share: Mean bid per conversion as a share of the price.
        bid_spread: Standard deviation of the log bid around it.
        budget_slack: Sum of the daily budgets over what `daily_conversions` would cost.
        rng: Draws both.
    """
    num_ads = len(price)
    bid = margin_share * price * rng.lognormal(-0.5 * bid_spread**2, bid_spread, num_ads)
    share = rng.permutation(np.arange(1, num_ads + 1) ** -0.8)
    budget = budget_slack * daily_conversions * bid.mean() * share / share.sum()
    ads = pd.DataFrame({"ad_id": np.arange(num_ads), **groups, "bid": bid, "bid_type": "OCPA"})
    ads = ads.assign(budget=budget, price=price, first_day=first_day, last_day=last_day)
    nobody = pd.array([pd.NA] * num_ads, dtype="Int64")  # null: everyone
    return ads.assign(**dict.fromkeys(_TARGETS, nobody))
