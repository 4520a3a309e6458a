"""How a log becomes a world: what is kept, how it is split, and what is simulated."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from simulators.world.item_codes import check_ids

_RULES: dict[str, tuple[Callable[[float], bool], str]] = {
    "be at least 1": (
        lambda x: x >= 1,
        "num_codes num_ranker_rows num_verticals num_categories num_advertisers num_labels "
        "num_days test_days validation_days train_days calibration_days max_users max_ads "
        "max_organic text_dim",
    ),
    "be at least 2": (lambda x: x >= 2, "num_levels"),
    "be at least 0": (lambda x: 0 <= x < math.inf, "attribution_window_s behavior_dim bid_spread"),
    "be positive": (lambda x: 0 < x < math.inf, "unbought_per_visit margin_share budget_slack"),
    "lie in [0, 1]": (lambda x: 0 <= x <= 1, "max_bad ad_share repeat_share impression_share"),
}


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Size, split and simulated parts of a world made from a log."""

    max_bad: float = 0.01
    """Largest share of bad rows; above it the log is refused."""
    max_users: int | None = 20_000
    """Users kept at most, chosen by a keyed hash of their ids. None: all."""
    max_ads: int | None = 3_000
    """Items kept at most as ads, the ones shown (or, without impressions, taken) most often on the
    log days. None: all."""
    max_organic: int | None = 3_000
    """Likewise the items of organic views. None: all."""
    ad_share: float = 0.5
    """Simulated where a log of successes alone does not say which items are ads: their share."""
    attribution_window_s: int = 86_400
    """A click or conversion counts for the last impression of its user and item within so many
    seconds before it; else it is a request of its own."""
    unbought_per_visit: float | None = None
    """Without impressions: mean number of exposures without success kept per visit. None: three
    times as many as succeed."""
    num_days: int | None = None
    """Days of the log that are used. None: through its last row."""
    test_days: int | None = None
    """Last days, which test. None: as few as hold a tenth of the rows."""
    validation_days: int | None = None
    """Days before them, which validate. None: likewise."""
    train_days: int | None = None
    """Last days of the log before those, on whose requests RL trains. None: as few as hold a
    quarter of the log's rows."""
    calibration_days: int | None = None
    """Last days of the log, on which the rankers are calibrated. None: as few as hold a tenth."""
    num_ranker_rows: int = 200_000
    """The rankers learn from the latest of the logged rows."""
    repeat_share: float = 0.05
    """The rankers see how often a user took a product before where at least this share of the log's
    successes are repeats."""
    num_codes: int = 64
    """V, codes per level of the semantic IDs."""
    num_levels: int = 3
    """L, levels of the semantic IDs."""
    tokenizer: str = "rq_kmeans"
    """Of the semantic IDs: rq_kmeans, rq_vae, rq_kmeans_plus or ua_sid."""
    resolve: str = "highest_value"
    """What a path stands for that several ads share: the eligible one with the highest value, or
    with `suffix` a level more tells them apart."""
    text_dim: int = 16
    """Width of an item's embedding where it is made from text."""
    behavior_dim: int = 16
    """Width of a second part of the embedding, which says who took or viewed the item on the log
    days. 0: none."""
    num_verticals: int = 50
    """The largest ones get a number each, the others share number 0."""
    num_categories: int = 200
    """Likewise."""
    num_advertisers: int = 300
    """Likewise."""
    num_labels: int = 100
    """Values of a user attribute, or scenes, that get a number each."""
    margin_share: float = 0.2
    """Simulated: mean bid, as a share of the item's price (of 1 where no price is known)."""
    bid_spread: float = 0.3
    """Simulated: standard deviation of the log bid around that."""
    budget_slack: float = 2.0
    """Simulated: all daily budgets together, in units of what a logged day costs the ads."""
    impression_share: float = 0.2
    """Share of unanswered impressions that stay in the token stream."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for rule, (holds, names) in _RULES.items():
            for name in names.split():
                value = getattr(self, name)
                if value is not None and not holds(value):
                    raise ValueError(f"{name} must {rule}, got {value}")
        check_ids(self.tokenizer, self.resolve, self.num_levels, self.num_codes)
