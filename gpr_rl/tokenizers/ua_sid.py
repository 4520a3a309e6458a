"""Semantic IDs of ads by content and business (UA-SID, GR4AD).

Dims: n rows, d embedding width, L levels, V codes of a level, P pairs.
"""

from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Int
from numpy.typing import ArrayLike
from torch import Tensor

from gpr_rl.checkpoint import below
from gpr_rl.checks import check_at_least, check_positive
from gpr_rl.tokenizers.base import Embeddings, Tokenizer, read_embeddings
from gpr_rl.tokenizers.code_index import CodeIndex
from gpr_rl.tokenizers.fitting.adapter import Adapter, train_adapter
from gpr_rl.tokenizers.fitting.balanced import balanced_kmeans
from gpr_rl.tokenizers.fitting.search import (
    check_rows,
    encode_residual,
    nearest,
    one_thread,
    sum_centroids,
)
from gpr_rl.tokenizers.keys import Keys, hash_content, hash_keys, read_keys


class _Level(NamedTuple):
    """A level of content codes."""

    codebook: Tensor
    """float32 [V, d]."""
    offset: Tensor
    """float32 [V], added to squared distances."""
    mean: Tensor
    """float32 [V, d], what a code stands for among the embeddings, before the adapter."""


class UASID(Tokenizer):
    """Balanced residual k-means on all levels but the last, which is a hash of business keys.

    Ads alike in content and unlike in business (account, conversion type, ad) so get different
    IDs, and a new ad gets one at once, without refitting. Codebooks shrink with depth. `decode`
    ignores the last level. `losses` are the adapter's, the mean per epoch.
    """

    facts: ClassVar = ("losses",)
    _index: CodeIndex

    def __init__(
        self,
        num_levels: int = 3,
        num_codes: int | Sequence[int] = (1_024, 256, 64),
        seed: int = 0,
        *,
        num_iterations: int = 25,
        adapter_epochs: int = 20,
        adapter_learning_rate: float = 1e-3,
        adapter_temperature: float = 0.1,
    ) -> None:
        """Configure; `fit` does the work.

        L >= 2 levels have `num_codes` each, or one number per level (GR4AD deploys 16384, 4096,
        1024). k-means runs `num_iterations` per level. Where `fit` gets pairs, Adam takes
        `adapter_epochs` passes over them with an InfoNCE loss of this temperature.

        Raises:
            ValueError: A number out of range.
        """
        super().__init__(num_levels, num_codes, seed)
        if num_levels < 2:
            raise ValueError(f"num_levels must be at least 2: content and keys, got {num_levels}")
        self.num_iterations = num_iterations
        self.adapter_epochs = adapter_epochs
        self.adapter_learning_rate = adapter_learning_rate
        self.adapter_temperature = adapter_temperature
        check_at_least(1, num_iterations=num_iterations)
        check_at_least(0, adapter_epochs=adapter_epochs)
        check_positive(
            adapter_learning_rate=adapter_learning_rate, adapter_temperature=adapter_temperature
        )
        self.losses: list[float] = []
        self._levels: list[_Level] = []
        self._adapter: Adapter | None = None

    def fit(
        self,
        x: Embeddings,
        keys: Keys | None = None,
        pairs: tuple[ArrayLike | Tensor, ArrayLike | Tensor] | None = None,
        item_id: Iterable[int] | None = None,
    ) -> "UASID":
        """Learn adapter and codebooks, put the rows [n, d] into the index, and return self.

        Without business keys per row (`keys.Keys`) the last level hashes the row's own content, so
        ads with equal content share it. `pairs` are rows that go together, int [P, 2], with weights
        [P], as `swing_pairs` gives them; the adapter pulls them together (InfoNCE) before the
        k-means. `item_id` are the rows' ids in the index; None: 0..n-1.

        Raises:
            ValueError: Fewer rows than codes of a content level, a row with NaN or infinity, keys
                or ids of another length, or pairs out of range.
        """
        x = read_embeddings(x)
        check_rows(x, self.num_codes[:-1])
        last = self._last_level(x, keys)  # here, so that wrong keys stop before the fit
        with one_thread():
            self._adapter, self.losses = None, []
            if pairs is not None:
                self._adapter, self.losses = train_adapter(
                    x,
                    *pairs,
                    num_epochs=self.adapter_epochs,
                    learning_rate=self.adapter_learning_rate,
                    temperature=self.adapter_temperature,
                    seed=self.seed,
                )
            self._fit_levels(x)
        codes = torch.cat([self._content_codes(x), last[:, None]], dim=1)
        self._index = CodeIndex(codes.cpu(), item_id)
        return self

    def _fit_levels(self, x: Tensor) -> None:
        residual, left = self._adapted(x), x
        self._levels = []
        for level, num_codes in enumerate(self.num_codes[:-1]):
            book, offset = balanced_kmeans(
                residual, num_codes, self.seed + level, num_iterations=self.num_iterations
            )
            code = nearest(residual, book, offset)
            size = torch.bincount(code, minlength=num_codes).clamp_min(1)
            mean = torch.zeros(num_codes, x.shape[1]).to(x).index_add(0, code, left)
            mean = mean / size[:, None]
            residual, left = residual - book[code], left - mean[code]
            self._levels.append(_Level(book, offset, mean))

    def encode(self, x: Embeddings, keys: Keys | None = None) -> Int[Tensor, "n L"]:
        """Return the codes int64 of rows [n, d]; a row's codes never depend on the others.

        Raises:
            ValueError: Not fitted, another width than at fit, a row with NaN or infinity, or keys
                (see `fit`) of another length.
        """
        self._check_fitted()
        rows = read_embeddings(x, width=self.width)
        return self._encode(rows.cpu(), keys).to(rows.device)

    def add(
        self, x: Embeddings, keys: Keys | None = None, item_id: Iterable[int] | None = None
    ) -> Int[Tensor, "n L"]:
        """Return the codes of new ads and put them into the index; nothing is fitted again.

        Without ids they get the next ones.

        Raises:
            ValueError: As `encode`, or an id that is in use.
        """
        codes = self.encode(x, keys)
        self.index.add(codes.cpu(), item_id)
        return codes

    @property
    def width(self) -> int:
        """The d of `fit`; 0: not fitted."""
        return self._levels[0].mean.shape[1] if self._levels else 0

    def _encode(self, x: Tensor, keys: Keys | None = None) -> Tensor:
        return torch.cat([self._content_codes(x), self._last_level(x, keys)[:, None]], dim=1)

    def _decode(self, codes: Tensor) -> Tensor:
        return sum_centroids(codes, [level.mean for level in self._levels])

    @property
    def index(self) -> CodeIndex:
        """From IDs to ads and back."""
        self._check_fitted()
        return self._index

    def _content_codes(self, x: Tensor) -> Tensor:
        codebooks, offsets, _ = zip(*self._levels, strict=True)
        return encode_residual(self._adapted(x), codebooks, offsets)

    def _adapted(self, x: Tensor) -> Tensor:
        return x if self._adapter is None else self._adapter.embed(x)

    def _last_level(self, x: Tensor, keys: Keys | None) -> Tensor:
        size = self.num_codes[-1]
        if keys is None:
            return torch.from_numpy(hash_content(x, size)).to(x.device)
        return torch.from_numpy(hash_keys(read_keys(keys, len(x)), size)).to(x.device)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"index.{name}": value for name, value in self.index.tensors().items()}
        for number, level in enumerate(self._levels):
            tensors |= {f"{name}_{number}": value for name, value in level._asdict().items()}
        if self._adapter is not None:
            weights = self._adapter.state_dict()
            tensors |= {f"adapter.{name}": value for name, value in weights.items()}
        return tensors

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        self._levels = [
            _Level(*(tensors[f"{name}_{number}"] for name in _Level._fields))
            for number in range(self.num_levels - 1)
        ]
        self._index = CodeIndex.from_tensors(below("index.", tensors))
        if weights := below("adapter.", tensors):
            self._adapter = Adapter.from_state(weights)
