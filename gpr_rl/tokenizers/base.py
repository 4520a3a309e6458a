"""What every tokenizer shares: reading embeddings, checking codes, files.

Dims: n rows, d embedding width, L levels.
"""

import hashlib
import json
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

FORMAT_VERSION = 1
_INFO_FILE = "tokenizer.json"


def read_embeddings(x: ArrayLike | Tensor, width: int | None = None) -> Float[Tensor, "n d"]:
    """Return `x` as a float32 tensor on its own device.

    Args:
        x: Array or tensor [n, d] of any float type.
        width: The d that it must have; None: any.

    Raises:
        ValueError: Not two-dimensional, another width, or a row with NaN or infinity (also one
            that float32 can't hold).
    """
    if not isinstance(x, Tensor):
        x = torch.from_numpy(np.array(x, dtype=np.float64, copy=True))
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"embeddings must be [n, d] with d >= 1, got {list(x.shape)}")
    if width is not None and x.shape[1] != width:
        raise ValueError(f"embeddings must have the {width} columns of fit, got {x.shape[1]}")
    x = x.detach().to(torch.float32)
    bad = (~x.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
    if bad:
        shown = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        raise ValueError(f"{len(bad)} of {len(x)} rows hold NaN or infinity: rows {shown}")
    return x


def read_codes(codes: ArrayLike | Tensor, num_codes: Sequence[int]) -> Int[Tensor, "n L"]:
    """Return `codes` as an int64 tensor.

    Args:
        codes: Integer array or tensor [n, L].
        num_codes: Codes per level, L entries; level l must lie in [0, num_codes[l]).

    Raises:
        ValueError: Another shape, not integers, or a code out of range.
    """
    if not isinstance(codes, Tensor):
        codes = torch.from_numpy(np.array(codes, copy=True))
    if codes.ndim != 2 or codes.shape[1] != len(num_codes):
        raise ValueError(f"codes must be [n, {len(num_codes)}], got {list(codes.shape)}")
    if codes.is_floating_point() or codes.dtype == torch.bool:
        raise ValueError(f"codes must be integers, got {codes.dtype}")
    codes = codes.long()
    bad = ((codes < 0) | (codes >= codes.new_tensor(num_codes))).nonzero()
    if len(bad):
        row, level = bad[0].tolist()
        raise ValueError(
            f"code {int(codes[row, level])} of row {row}, level {level} is outside"
            f" [0, {num_codes[level]})"
        )
    return codes


def read_num_codes(num_codes: SupportsIndex | Sequence[int], num_levels: int) -> tuple[int, ...]:
    """Return the codes per level as L integers.

    Raises:
        ValueError: No levels, a level without codes, or another number of entries than levels.
    """
    if num_levels < 1:
        raise ValueError(f"num_levels must be at least 1, got {num_levels}")
    if isinstance(num_codes, SupportsIndex):
        per_level = (operator.index(num_codes),) * num_levels
    else:
        per_level = tuple(int(count) for count in num_codes)
    if len(per_level) != num_levels or min(per_level) < 1:
        raise ValueError(
            f"num_codes must be a positive integer or {num_levels} of them, got {num_codes}"
        )
    return per_level


def save_tokenizer(
    directory: str | Path, kind: str, config: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Write a tokenizer as safetensors and JSON.

    The tensor file is named after its content and the JSON names it, so replacing the JSON is the
    one moment at which an older tokenizer gives way to the new one.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    data = dump_tensors({name: x.detach().cpu().contiguous() for name, x in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    tensor_file = f"tokenizer-{digest[:16]}.safetensors"
    info = {"format": FORMAT_VERSION, "kind": kind, "config": config}
    info |= {"tensors": tensor_file, "sha256": digest}
    _write(directory / tensor_file, data)
    _write(directory / _INFO_FILE, json.dumps(info, indent=2).encode())
    for old in directory.glob("tokenizer-*.safetensors"):
        if old.name != tensor_file:
            old.unlink()


def load_tokenizer(directory: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the config and tensors that `save_tokenizer` wrote.

    Raises:
        FileNotFoundError: No tokenizer there.
        ValueError: A file is damaged or belongs to another kind of tokenizer; it is left alone.
    """
    info_file = Path(directory) / _INFO_FILE
    if not info_file.is_file():
        raise FileNotFoundError(f"no tokenizer in {directory}: {_INFO_FILE} is missing")
    try:
        info = json.loads(info_file.read_bytes())
        found, version = info["kind"], info["format"]
        config, tensor_file = dict(info["config"]), Path(directory) / info["tensors"]
        digest = info["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{info_file} is damaged or not a tokenizer's: {error!r}") from error
    if version != FORMAT_VERSION:
        raise ValueError(f"{info_file} has format {version}, this version reads {FORMAT_VERSION}")
    if found != kind:
        raise ValueError(f"{info_file} holds a {found}, not a {kind}")
    try:
        data = tensor_file.read_bytes()
    except OSError as error:
        raise ValueError(f"{tensor_file}, which {_INFO_FILE} names, can't be read") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"{tensor_file} is damaged: its content is not what {_INFO_FILE} records")
    try:
        return config, load_tensors(data)
    except SafetensorError as error:
        raise ValueError(f"{tensor_file} is not a safetensors file: {error}") from error


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
