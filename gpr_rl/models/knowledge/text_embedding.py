"""Texts to vectors: TF-IDF with truncated SVD, or a local sentence model.

Dims: B texts, W words of the vocabulary, k width of the vectors.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpr_rl.checks import check_at_least

_WEIGHTS, _WORDS = "text_embedding.safetensors", "text_embedding.json"


class TfidfEmbedder:
    """Latent semantic analysis: TF-IDF over single words and pairs, then k SVD directions.

    Vectors have length 1, except that of a text without any known word, which is zero.
    """

    def __init__(
        self, words: Sequence[str], weight: Float[Tensor, " W"], directions: Float[Tensor, "W k"]
    ) -> None:
        from sklearn.feature_extraction.text import CountVectorizer

        self.words, self.weight, self.directions = list(words), weight, directions
        column = {word: index for index, word in enumerate(self.words)}
        self._counter = CountVectorizer(vocabulary=column, ngram_range=(1, 2))

    @classmethod
    def fit(
        cls, texts: Sequence[str], dim: int = 32, max_words: int = 20_000, seed: int = 0
    ) -> "TfidfEmbedder":
        """Learn at most `max_words` words, the most frequent, and k = `dim` directions from texts.

        Empty texts are left out. `dim` is not given in the paper; directions that so few texts or
        words don't have are zero. `seed` is of the randomised SVD.

        Raises:
            ValueError: No text with a word, or `dim` below 1.
        """
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        texts = [text for text in texts if text.strip()]
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), max_features=max_words)
        check_at_least(1, dim=dim)
        if not any(map(vectorizer.build_analyzer(), texts)):
            raise ValueError(f"at least one text with a word is needed, got {len(texts)} without")
        table = vectorizer.fit_transform(texts)
        svd = TruncatedSVD(min(dim, table.shape[1]), random_state=seed)
        with np.errstate(divide="ignore", invalid="ignore"):  # shares of no variance, where all
            svd.fit(table)  # texts are alike: not used here
        directions = torch.zeros(table.shape[1], dim)
        directions[:, : len(svd.components_)] = torch.from_numpy(svd.components_.T.copy())
        weight = torch.from_numpy(vectorizer.idf_).float()
        return cls(list(vectorizer.get_feature_names_out()), weight, directions)

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "B k"]:
        """Return a vector per text."""
        count = self._counter.transform(texts).tocoo()
        rows, columns = (torch.from_numpy(axis).long() for axis in (count.row, count.col))
        weight = torch.from_numpy(count.data).float() * self.weight[columns]
        found = torch.zeros(len(texts), self.directions.shape[1])
        found.index_add_(0, rows, weight[:, None] * self.directions[columns])
        return torch.nn.functional.normalize(found, dim=1)

    def save(self, directory: Path) -> None:
        """Write the numbers as safetensors and the words as JSON."""
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {"weight": self.weight, "directions": self.directions.contiguous()}
        save_file(tensors, directory / _WEIGHTS)
        (directory / _WORDS).write_text(json.dumps(self.words, ensure_ascii=False))

    @classmethod
    def load(cls, directory: Path) -> "TfidfEmbedder":
        """Read what `save` wrote.

        Raises:
            ValueError: The two files do not fit each other.
        """
        tensors = load_file(directory / _WEIGHTS)
        words = json.loads((directory / _WORDS).read_text())
        if not len(words) == len(tensors["weight"]) == len(tensors["directions"]):
            raise ValueError(
                f"{directory}: {len(words)} words, but weights of {len(tensors['weight'])}"
            )
        return cls(words, tensors["weight"], tensors["directions"])


class SentenceEmbedder:
    """A sentence-transformers model from a local folder; nothing is downloaded.

    Raises:
        ImportError: sentence-transformers is not installed.
    """

    def __init__(self, directory: Path) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ImportError(
                "SentenceEmbedder needs sentence-transformers, which is not installed;"
                " TfidfEmbedder needs nothing more"
            ) from error
        self._model = SentenceTransformer(str(directory), local_files_only=True)

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "B k"]:
        """Return a vector of length 1 per text, zero where the text is empty."""
        vectors = self._model.encode(list(texts), normalize_embeddings=True)
        empty = torch.tensor([not text.strip() for text in texts], dtype=torch.bool)
        return torch.from_numpy(vectors).float().masked_fill(empty[:, None], 0.0)
