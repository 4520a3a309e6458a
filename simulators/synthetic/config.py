"""The dials of a synthetic world, and the named sizes."""

import math
from dataclasses import dataclass, replace

from gpr_rl.checks import check_at_least, check_positive
from simulators.world.item_codes import check_ids


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Everything that a synthetic world depends on, beside its seed."""

    name: str = "small"
    """Which named size this started from."""
    num_users: int = 1_000
    num_ads: int = 2_000
    num_organic: int = 1_000
    """Organic items (videos, articles) that share the content hierarchy with the ads."""
    num_codes: int = 64
    """V, codes per level of the semantic IDs."""
    num_levels: int = 3
    """L, levels of the semantic IDs."""
    num_log_days: int = 14
    """Days that models may be trained on."""
    num_heldout_days: int = 3
    """Later days: the first for validation, the others for tests."""
    impressions_per_user: float = 300.0
    """Mean ad impressions per user over the logged days (activity is a power law)."""
    organic_per_user: float = 60.0
    """Mean organic views per user over the logged days."""
    embedding_dim: int = 32
    """d, width of the content embeddings."""
    num_verticals: int = 8
    num_categories: int = 32
    """Categories over all verticals."""
    num_advertisers: int = 128
    """Advertisers over all categories; the advertiser level of the content hierarchy."""
    num_interests: int = 3
    """Interests of a user, each a category with a weight."""
    coarse_share: float = 0.9
    """Share of the interest match's variance that category and vertical explain; the rest is
    a match of user and item latents."""
    shuffle_tree: bool = False
    """Control: behaviour follows a random assignment of ads to categories, so that the
    content hierarchy, and with it the code tree, explains nothing."""
    match_scale: float = 0.9
    """Standard deviation of the interest match in the click logit."""
    drift: float = 0.03
    """Probability per day that an interest is replaced by another category."""
    base_ctr: float = 0.012
    """Click rate of uniformly drawn ads; scenes spread it (0.4-10 % in public logs)."""
    base_cvr: float = 0.035
    """Conversions per click of uniformly drawn ads."""
    fatigue: float = 0.25
    """Loss of click logit per log(1 + impressions of the advertiser today and yesterday)."""
    targeting_share: float = 0.4
    """Share of ads that target age, gender, region or device."""
    context_targeting_share: float = 0.0
    """Share of ads that target hours of the day or a scene, beside the others."""
    budget_tightness: float = 1.0
    """Divides the daily budgets of `ads.parquet`, which at 1 sum to three times what a day of
    logged traffic earns. Days spend them, single requests do not."""
    exploration: float = 0.35
    """Share of logged traffic that shows a uniformly drawn legal ad."""
    logging_noise: float = 0.8
    """Standard deviation of the production system's error in the click logit."""
    logging_temperature: float = 0.7
    """Temperature of the production system's softmax over log eCPM."""
    retrieval_share: float = 0.3
    """Share of the catalogue that the production system's retrieval passes on to its ranking."""
    market_cpm: float = 75.0
    """Mean market price in eCPM units; 60-95 in public logs."""
    cpm_share: float = 0.1
    """Share of ads that pay per impression."""
    cpc_share: float = 0.45
    """Share of ads that pay per click; the others pay per conversion."""
    bids_priced_on: str = "requests"
    """What an equal mean eCPM of the bid types is measured on: `requests`, what a random eligible
    request would bring, or `impressions`, what production shows. The latter overprices ads that
    pay whoever looks: production shows the others to interested users only."""
    ad_bid_spread: float = 0.25
    """Standard deviation of the ads' log bids around their advertiser's."""
    advertiser_bid_spread: float = 0.15
    """Standard deviation of the advertisers' log bids."""
    quality_spread: float = 0.18
    """Standard deviation of the ads' quality, in the click and the conversion logit."""
    ranker_epochs: int = 6
    """Passes of the rankers' training over the log at most; the best on its last day is kept."""
    tokenizer: str = "rq_kmeans"
    """Of the semantic IDs: rq_kmeans, rq_vae, rq_kmeans_plus or ua_sid."""
    resolve: str = "highest_value"
    """What a path stands for that several ads share: the eligible one with the highest value, or
    with `suffix` a level more tells them apart."""
    rankers: str = "strong"
    """`strong`: counts, history attention and embeddings; `weak`: embeddings only, which is the
    regime in which a policy learns to exploit the rankers."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, choices in (
            ("rankers", ("strong", "weak")),
            ("bids_priced_on", ("requests", "impressions")),
        ):
            if getattr(self, name) not in choices:
                options = " or ".join(map(repr, choices))
                raise ValueError(f"{name} must be {options}, got {getattr(self, name)!r}")
        check_ids(self.tokenizer, self.resolve, self.num_levels, self.num_codes)
        shares = ("coarse_share", "exploration", "targeting_share", "drift", "cpm_share")
        for name in (*shares, "cpc_share", "context_targeting_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("num_users", "num_organic", "num_codes"):
            check_at_least(1, **{name: getattr(self, name)})
        check_at_least(2, num_levels=self.num_levels, num_heldout_days=self.num_heldout_days)
        check_at_least(3, num_log_days=self.num_log_days)
        if self.cpm_share + self.cpc_share > 1.0:
            raise ValueError(
                "cpm_share and cpc_share must not exceed 1 together, got "
                f"{self.cpm_share} and {self.cpc_share}"
            )
        for name in ("ad_bid_spread", "advertiser_bid_spread", "quality_spread"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        check_at_least(1, ranker_epochs=self.ranker_epochs)
        for name in ("budget_tightness", "impressions_per_user", "logging_temperature"):
            check_positive(**{name: getattr(self, name)})
        if self.num_ads < self.num_codes:
            raise ValueError(
                f"num_ads must be at least num_codes ({self.num_codes}), got {self.num_ads}"
            )

    @property
    def daily_budget(self) -> float:
        """Sum of all daily budgets, in currency (an eCPM is per 1,000 impressions)."""
        impressions = self.num_users * self.impressions_per_user / self.num_log_days
        return 3.0 * impressions * self.market_cpm / 1000.0 / self.budget_tightness

    @property
    def num_days(self) -> int:
        """All simulated days."""
        return self.num_log_days + self.num_heldout_days


SMALL = WorldConfig()
CONSTANT = replace(
    SMALL,
    name="constant",
    num_interests=4,
    coarse_share=0.7,
    base_ctr=0.02,
    base_cvr=0.05,
    bids_priced_on="impressions",
    ad_bid_spread=0.4,
    advertiser_bid_spread=0.25,
    quality_spread=0.3,
)
PRESETS: dict[str, WorldConfig] = {
    "small": SMALL,
    "medium": replace(
        SMALL,
        name="medium",
        num_users=1_500,
        num_ads=8_000,
        num_codes=128,
        num_verticals=16,
        num_categories=64,
        num_advertisers=384,
    ),
    "constant": CONSTANT,
    "tiny": replace(
        SMALL,
        name="tiny",
        num_users=200,
        num_ads=200,
        num_organic=100,
        num_codes=16,
        num_verticals=4,
        num_categories=12,
        num_advertisers=36,
        base_ctr=0.02,
        base_cvr=0.05,
        impressions_per_user=120.0,
        organic_per_user=30.0,
    ),
    "standard": replace(
        SMALL,
        name="standard",
        num_users=10_000,
        num_ads=20_000,
        num_organic=10_000,
        num_codes=256,
        num_verticals=16,
        num_categories=96,
        num_advertisers=768,
    ),
    "weak": replace(
        CONSTANT, name="weak", impressions_per_user=60.0, exploration=0.1, rankers="weak"
    ),
}
"""Worlds that have a name. `constant` pays for one list of ads for everybody, since its ads that
pay per impression are overpriced; `weak` is the reward-hacking regime."""
GATED = ("small", "medium")
"""Worlds that are refused where they don't pay for who an ad is shown to (`synthetic.worth`)."""
MARKET_DIALS: dict[str, dict[str, object]] = {
    "sparse_logs": {"impressions_per_user": 40.0, "exploration": 0.1},
    "drift": {"drift": 0.3},
    "deep_tree": {"num_levels": 4, "num_codes": 16},
    "coarse_0": {"coarse_share": 0.0},
    "coarse_100": {"coarse_share": 1.0},
    "shuffled_tree": {"shuffle_tree": True},
}
"""Markets that are worlds of their own (`simulators.markets`)."""


def named_config(name: str) -> WorldConfig | None:
    """Return the dials of a named synthetic world, `small-drift` and its like included, or None."""
    if name in PRESETS:
        return PRESETS[name]
    size, _, market = name.partition("-")
    if size not in PRESETS or market not in MARKET_DIALS:
        return None
    return replace(PRESETS[size], name=name, **MARKET_DIALS[market])  # type: ignore[arg-type]
