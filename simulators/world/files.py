"""Reading the files of a world's directory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pandas as pd
from safetensors.torch import load_file
from torch import Tensor

from simulators.world.info import WorldError

T = TypeVar("T")
TABLES = ("users", "ads", "organic", "events")


def read_json(path: Path) -> dict:
    """Read a JSON object of a world; WorldError where it is missing or damaged."""
    found = _read(path, lambda: json.loads(path.read_text()))
    if not isinstance(found, dict):
        raise WorldError(f"{path} can't be read: it holds no JSON object")
    return found


def read_frame(path: Path) -> pd.DataFrame:
    """Read a table of a world; WorldError where it is missing or damaged."""
    return _read(path, lambda: pd.read_parquet(path))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file of a world; WorldError where it is missing or damaged."""
    return _read(path, lambda: load_file(path))


def _read(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except Exception as error:
        raise WorldError(f"{path} can't be read: {error}") from error
