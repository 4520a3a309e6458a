"""Reading the files of a world's directory."""

import json
from pathlib import Path

import pandas as pd
from safetensors.torch import load_file
from torch import Tensor

from simulators.world.info import WorldError

TABLES = ("users", "ads", "organic", "events")


def read_json(path: Path) -> dict:
    """Read a JSON object of a world; WorldError where it is missing or damaged."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WorldError(f"{path} can't be read: {error}") from error
    if not isinstance(found, dict):
        raise WorldError(f"{path} can't be read: it holds no JSON object")
    return found


def read_frame(path: Path) -> pd.DataFrame:
    """Read a table of a world; WorldError where it is missing or damaged."""
    try:
        return pd.read_parquet(path)
    except Exception as error:
        raise WorldError(f"{path} can't be read: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file of a world.

    Raises:
        WorldError: It is missing or damaged; the message names it.
    """
    try:
        return load_file(path)
    except Exception as error:
        raise WorldError(f"{path} can't be read: {error}") from error
