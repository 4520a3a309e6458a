"""Answers that were given a short while ago."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple

from gpr_rl.schema import Candidates


class Found(NamedTuple):
    """What a search gave for one request."""

    candidates: Candidates  # [1, K]
    width: int
    version: int
    """Of the catalogue that was searched."""


class AnswerCache:
    """The answers of the last `life_s` seconds, at most `size`; the longest unused leaves first.

    A key must name the catalogue's version, so that an answer dies with its catalogue. Safe to
    use from several threads.

    Args:
        life_s: Seconds from the search on; at 0 nothing is kept.
        size: How many answers; at 0 nothing is kept.
        clock: Gives seconds, from any origin.
    """

    def __init__(self, life_s: int | float, size: int, clock: Callable[[], float]) -> None:
        self._life_s, self._size, self._clock = life_s, size, clock
        self._entries: OrderedDict[Hashable, tuple[Found, float]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, width: int) -> Found | None:
        """Return a copy of the answer under a key if it was searched at least this wide."""
        with self._lock:
            if key not in self._entries:
                return None
            found, until = self._entries[key]
            if self._clock() >= until:
                del self._entries[key]
                return None
            if found.width < width:
                return None
            self._entries.move_to_end(key)
        return found._replace(candidates=found.candidates.clone())

    def put(self, key: Hashable, found: Found) -> None:
        """Keep a copy of an answer, in place of an older one under the key."""
        if not (self._life_s and self._size):
            return
        # callers may do with theirs what they like
        entry = found._replace(candidates=found.candidates.clone()), self._clock() + self._life_s
        with self._lock:
            self._entries[key] = entry
            self._entries.move_to_end(key)
            if len(self._entries) > self._size:
                self._entries.popitem(last=False)
