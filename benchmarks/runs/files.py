"""Writing a run's files: each appears under its name only when it is complete."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from gpr_rl import files


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in a folder that is made if it is missing, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, all or nothing."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write indented JSON, all or nothing."""
    write_text(path, json.dumps(to_plain(value), indent=2) + "\n")


def append_json_line(path: Path, record: Mapping[str, object]) -> None:
    """Append one JSON object as one line, in one write, so that processes don't mix lines."""
    line = (json.dumps(to_plain(record)) + "\n").encode()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, line)
    finally:
        os.close(handle)


def to_plain(value: object) -> Any:
    """Return a value as JSON types: tuples become lists, NaN and inf None, paths strings."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # numpy and torch scalars
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield nested settings under dotted names; an empty mapping is a value."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
