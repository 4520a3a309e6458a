"""What every tokenizer shares: reading embeddings, checking codes, files.

Dims: n rows, d embedding width, L levels.
"""

import hashlib
import json
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, SupportsIndex, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from gpr_rl.checks import check_at_least
from gpr_rl.files import write_bytes
from gpr_rl.tokenizers.files import load_matrix

FORMAT_VERSION = 1
_INFO_FILE = "tokenizer.json"

Embeddings = ArrayLike | Tensor | Path
"""A matrix [n, d] of any float type (or integers), or the path of a file with one."""


_T = TypeVar("_T", bound="Tokenizer")


class Tokenizer(ABC):
    """Codes of an embedding, L = `num_levels` of them, coarse to fine, and back.

    `num_codes` are L integers. A subclass keeps each argument of its constructor as an attribute
    of that name, and what `fit` found in tensors and in the attributes `facts`, plain JSON types.
    """

    facts: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, num_levels: int, num_codes: SupportsIndex | Sequence[int], seed: int
    ) -> None:
        self.num_codes = read_num_codes(num_codes, num_levels)
        self.num_levels = num_levels
        self.seed = seed

    def encode(self, x: Embeddings) -> Int[Tensor, "n L"]:
        """Return the codes int64 of rows [n, d]; a row's codes never depend on the others.

        They are found on the CPU and returned where the rows are.

        Raises:
            ValueError: Not fitted, another width than at fit, or a row with NaN or infinity.
        """
        self._check_fitted()
        rows = read_embeddings(x, width=self.width)
        return self._encode(rows.cpu()).to(rows.device)

    def decode(self, codes: ArrayLike | Tensor) -> Float[Tensor, "n d"]:
        """Return the float32 embeddings that codes [n, L] stand for, where the codes are.

        Raises:
            ValueError: Not fitted, codes of another shape, or one out of range.
        """
        self._check_fitted()
        checked = read_codes(codes, self.num_codes)
        return self._decode(checked.cpu()).to(checked.device)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON takes them."""
        settings = {name: getattr(self, name) for name in signature(type(self)).parameters}
        return settings | {"num_codes": list(self.num_codes)}

    @property
    @abstractmethod
    def width(self) -> int:
        """The d of `fit`; 0: not fitted."""

    @abstractmethod
    def _encode(self, x: Tensor) -> Tensor:
        """Return `encode` of checked rows."""

    @abstractmethod
    def _decode(self, codes: Tensor) -> Tensor:
        """Return `decode` of checked codes."""

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """Return the tensors that `fit` found."""

    @abstractmethod
    def _restore(self, tensors: dict[str, Tensor]) -> None:
        """Take what `_tensors` gave; the facts are there already."""

    def _check_fitted(self) -> None:
        if not self.width:
            raise ValueError(f"this {type(self).__name__} is not fitted: call fit or load first")

    def save(self, directory: str | Path) -> None:
        """Write settings and what was fitted to `directory`, replacing what `save` left there.

        Raises:
            ValueError: Not fitted.
        """
        self._check_fitted()
        fitted = {name: getattr(self, name) for name in self.facts}
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        data = dump_tensors(
            {name: x.detach().cpu().contiguous() for name, x in self._tensors().items()}
        )
        digest = hashlib.sha256(data).hexdigest()
        tensor_file = f"tokenizer-{digest[:16]}.safetensors"
        info = {"format": FORMAT_VERSION, "kind": type(self).__name__}
        info |= {"config": {**self.config, "fitted": fitted}}
        info |= {"tensors": tensor_file, "sha256": digest}
        write_bytes(directory / tensor_file, data)
        write_bytes(directory / _INFO_FILE, json.dumps(info, indent=2).encode())
        for old in directory.glob("tokenizer-*.safetensors"):
            if old.name != tensor_file:
                old.unlink()

    @classmethod
    def load(cls: type[_T], directory: str | Path) -> _T:
        """Return the tokenizer that `save` wrote to `directory`.

        Raises:
            FileNotFoundError: No tokenizer there.
            ValueError: Its files are damaged or another tokenizer's; they are left alone.
        """
        info, folder = read_info(directory), Path(directory)
        if info["kind"] != cls.__name__:
            raise ValueError(f"{folder / _INFO_FILE} holds a {info['kind']}, not a {cls.__name__}")
        tensors = _read_tensors(folder / info["tensors"], info["sha256"])
        try:
            fitted = info["config"].pop("fitted")
            tokenizer = cls(**info["config"])
            for name in cls.facts:
                setattr(tokenizer, name, fitted[name])
            tokenizer._restore(tensors)
        except (KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"the tokenizer in {directory} is damaged: {error!r}") from error
        return tokenizer


def read_embeddings(x: Embeddings, width: int | None = None) -> Float[Tensor, "n d"]:
    """Return an array or tensor [n, d] of any float type, or a file's matrix, as a float32 tensor.

    `width` is the d that it must have; None: any. A tensor stays on its device.

    Raises:
        ValueError: Not two-dimensional, another width, or a row with NaN or infinity (also one
            that float32 can't hold).
    """
    if isinstance(x, str | Path):
        x = load_matrix(x)
    if not isinstance(x, Tensor):
        array = np.asarray(x)
        kept = array.dtype in (np.float16, np.float32)
        x = torch.from_numpy(np.array(array, dtype=array.dtype if kept else np.float64, copy=True))
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"embeddings must be [n, d] with d >= 1, got {list(x.shape)}")
    if width is not None and x.shape[1] != width:
        raise ValueError(f"embeddings must have the {width} columns of fit, got {x.shape[1]}")
    x = x.detach().to(torch.float32)
    if not x.sum().isfinite():  # one pass; only then row by row, as large numbers may overflow
        bad = (~x.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
        if bad:
            shown = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
            raise ValueError(f"{len(bad)} of {len(x)} rows hold NaN or infinity: rows {shown}")
    return x


def read_codes(codes: ArrayLike | Tensor, num_codes: Sequence[int]) -> Int[Tensor, "n L"]:
    """Return integers [n, L] as an int64 tensor; level l must lie in [0, num_codes[l]).

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
    check_at_least(1, num_levels=num_levels)
    if isinstance(num_codes, SupportsIndex):
        per_level = (operator.index(num_codes),) * num_levels
    else:
        per_level = tuple(int(count) for count in num_codes)
    if len(per_level) != num_levels or min(per_level) < 1:
        raise ValueError(
            f"num_codes must be a positive integer or {num_levels} of them, got {num_codes}"
        )
    return per_level


def read_info(directory: str | Path) -> dict[str, Any]:
    """Return what the JSON of the tokenizer in `directory` says; `kind` is its class.

    Raises:
        FileNotFoundError: No tokenizer there.
        ValueError: The JSON is damaged or of another version's format.
    """
    path = Path(directory) / _INFO_FILE
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer in {directory}: {_INFO_FILE} is missing")
    try:
        info = dict(json.loads(path.read_bytes()))
        version = info["format"]
        info["config"] = dict(info["config"])
        for name in ("kind", "tensors", "sha256"):
            if not isinstance(info[name], str):
                raise TypeError(f"{name} is no text")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged or not a tokenizer's: {error!r}") from error
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} has format {version}, this version reads {FORMAT_VERSION}")
    return info


def _read_tensors(path: Path, digest: str) -> dict[str, Tensor]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}, which {_INFO_FILE} names, can't be read") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"{path} is damaged: its content is not what {_INFO_FILE} records")
    try:
        return load_tensors(data)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
