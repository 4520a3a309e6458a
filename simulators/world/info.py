"""`world.json`: the head of a world's directory."""

from dataclasses import dataclass

FORMAT_VERSION = 5
USER_COLUMNS = ("age_bucket", "gender", "region", "device", "activity_group")


@dataclass(frozen=True, kw_only=True)
class WorldInfo:
    """`world.json`: how the world was made and what it needs to be read."""

    name: str
    seed: int
    source: str
    """`synthetic`, or the data set it was made from."""
    config: dict
    """Dials (synthetic) or import settings."""
    num_codes: int
    num_levels: int
    num_log_days: int
    num_train_days: int
    """Request days that policies train on: the last ones of the log."""
    num_days: int
    has_clicks: bool
    """Without clicks every shown ad is a trial for the conversion, and pCTR is 1."""
    has_truth: bool
    context_cardinalities: tuple[int, ...]
    """Scene, position, hour, device for a synthetic world."""
    user_cardinalities: tuple[int, ...]
    ranker_config: dict
    has_conversions: bool = True
    """Without conversions pCVR is 0, and bids are per impression or click."""
    simulated: tuple[str, ...] = ()
    """What was simulated for lack of data, for instance `bids`."""
    user_columns: tuple[str, ...] = USER_COLUMNS
    """Columns of `users.parquet` that are user attributes, in the order of their cardinalities."""
    num_validation_days: int = 1
    """Days after the log that validate; the later ones test."""
    notes: tuple[str, ...] = ()
    """What a reader of results must know, in sentences; shown in reports."""
    impression_share: float = 1.0
    """Share of unanswered impressions that stay in the token stream."""
    max_tokens: int = 64
    format_version: int = FORMAT_VERSION


class WorldError(ValueError):
    """A directory that is no world, or whose files can't be read."""
