"""Reading the files of a world's directory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load_file

from simulators.world.info import WorldError

TABLES = ("users", "ads", "organic", "events")


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
