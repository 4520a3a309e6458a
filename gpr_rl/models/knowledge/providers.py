"""External knowledge: texts about users' likely interests, as one more intent embedding (GPR 2.2).

A provider says in words what a user may be interested in; an embedder turns the words into a
vector; the model puts it, projected, beside the intent embeddings, where every state may see it.
The paper lets a fine-tuned language model write the "thought process" and tokenizes it; here its
texts come from a file that any language model wrote beforehand, or from a template.

Dims: B requests, k width of a text's vector, D width of the model.
"""

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gpr_rl.checks import check_at_least
from gpr_rl.schema import Request


@runtime_checkable
class KnowledgeProvider(Protocol):
    """Says what users may be interested in."""

    def thoughts(self, user_id: Int[Tensor, " B"], timestamp: Int[Tensor, " B"]) -> list[str]:
        """Return a text per request, "" where nothing is known, from before `timestamp` only."""


class Click(NamedTuple):
    """An ad or item that a user clicked, in words."""

    user_id: int
    timestamp: int
    """Seconds, on the clock of the requests."""
    category: str
    advertiser: str = ""
    """Empty where it has none, as an organic item."""


class HistoryThoughts:
    """A template filled with the user's most frequent categories and advertisers before a request.

    At most `num_named` of each kind are named; the alphabet decides between equals.
    """

    def __init__(self, clicks: Iterable[Click], num_named: int = 3) -> None:
        check_at_least(1, num_named=num_named)
        self.num_named = num_named
        self._clicks: dict[int, list[Click]] = {}
        for click in sorted(clicks, key=lambda click: click.timestamp):
            self._clicks.setdefault(click.user_id, []).append(click)

    def thoughts(self, user_id: Int[Tensor, " B"], timestamp: Int[Tensor, " B"]) -> list[str]:
        """Return a text per request."""
        pairs = zip(user_id.tolist(), timestamp.tolist(), strict=True)
        return [self._thought(user, time) for user, time in pairs]

    def _thought(self, user: int, time: int) -> str:
        clicks = self._clicks.get(user, [])
        past = clicks[: bisect_left(clicks, time, key=lambda click: click.timestamp)]
        categories = self._most_frequent(click.category for click in past)
        advertisers = self._most_frequent(click.advertiser for click in past)
        said = []
        if categories:
            said.append(f"The user is likely interested in {', '.join(categories)}.")
        if advertisers:
            said.append(f"The user often clicks ads of {', '.join(advertisers)}.")
        return " ".join(said)

    def _most_frequent(self, names: Iterable[str]) -> list[str]:
        count = Counter(name for name in names if name)
        return sorted(count, key=lambda name: (-count[name], name))[: self.num_named]


class PreparedThoughts:
    """Texts written beforehand, one per user; a user without one has "".

    They do not change with the time of the request: whoever writes them must know nothing of what
    they are to help predict.
    """

    def __init__(self, text: Mapping[int, str]) -> None:
        self.text = dict(text)

    @classmethod
    def load(cls, path: Path) -> "PreparedThoughts":
        """Read a file with a line `{"user_id": 7, "text": "..."}` per user.

        Raises:
            ValueError: A line that is not of this form, or names a user again; says which.
        """
        text: dict[int, str] = {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                if line.strip():
                    user, thought = _parse(line)
                    if user in text:
                        raise ValueError(f"user {user} has a text already")
                    text[user] = thought
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
        return cls(text)

    def thoughts(self, user_id: Int[Tensor, " B"], timestamp: Int[Tensor, " B"]) -> list[str]:
        """Return a text per request."""
        return [self.text.get(user, "") for user in user_id.tolist()]


def _parse(line: str) -> tuple[int, str]:
    entry = json.loads(line)
    if not isinstance(entry, dict) or set(entry) != {"user_id", "text"}:
        raise ValueError('must be an object with "user_id" and "text" and nothing else')
    user, thought = entry["user_id"], entry["text"]
    if type(user) is not int:
        raise ValueError(f"user_id must be an integer, got {user!r}")
    if not isinstance(thought, str):
        raise ValueError(f"text must be a string, got {thought!r}")
    return user, thought


class KnowledgeSlot(nn.Module):
    """Projects a text's vector to one intent embedding per user, of the scale of h."""

    def __init__(self, knowledge_dim: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(knowledge_dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, h: Float[Tensor, "B T D"], knowledge: Float[Tensor, "B k"] | None
    ) -> Float[Tensor, "B 1 D"]:
        """Return the slot beside `h`; without knowledge, that of the zero vector, an empty text.

        Raises:
            ValueError: Vectors of another width or number, or not finite.
        """
        want = (len(h), self.project.in_features)
        if knowledge is None:
            knowledge = h.new_zeros(want)
        if knowledge.shape != want:
            raise ValueError(f"knowledge must be {want}, got {tuple(knowledge.shape)}")
        if not knowledge.sum().isfinite():
            row = int((~knowledge.isfinite()).any(1).to(torch.int8).argmax())
            raise ValueError(
                f"knowledge must be finite, got {knowledge[row].tolist()} in row {row}"
            )
        return self.norm(self.project(knowledge.to(h.dtype)))[:, None]


@runtime_checkable
class TextEmbedder(Protocol):
    """Turns texts into vectors."""

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "B k"]:
        """Return a float32 vector per text; the same for the same text, whatever stands beside."""


def embed_thoughts(
    provider: KnowledgeProvider,
    embed: TextEmbedder,
    user_id: Int[Tensor, " B"],
    timestamp: Int[Tensor, " B"],
) -> Float[Tensor, "B k"]:
    """Return the vectors of what a provider says about B requests."""
    return embed(provider.thoughts(user_id, timestamp))


class InformedPolicy:
    """An `HHD` that looks up what is known of each request's user, for decoding and evaluation."""

    def __init__(self, model: Any, provider: KnowledgeProvider, embed: TextEmbedder) -> None:
        self.model, self.provider, self.embed = model, provider, embed
        self.begin, self.extend, self.step = model.begin, model.extend, model.step
        self.logits, self.final_value = model.logits, model.final_value

    def encode(self, request: Request) -> Any:
        """Return the model's context, with knowledge from before each request."""
        known = embed_thoughts(self.provider, self.embed, request.user_id, request.timestamp)
        return self.model.encode(request, known)
