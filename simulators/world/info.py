"""The files of a world's directory, `world.json` first of all."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load_file

FORMAT_VERSION = 5
TABLES = ("users", "ads", "organic", "events")
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


def _read_object(path: Path) -> dict:
    found = json.loads(path.read_text())
    if not isinstance(found, dict):
        raise TypeError("it holds no JSON object")
    return found


_READERS: dict[str, Callable[[Path], Any]] = {
    ".json": _read_object,
    ".parquet": pd.read_parquet,
    ".safetensors": load_file,
}


def read_file(path: Path) -> Any:
    """Return a JSON object, a table or tensors; WorldError where one is missing or damaged."""
    try:
        return _READERS[path.suffix](path)
    except Exception as error:
        raise WorldError(f"{path} can't be read: {error}") from error
