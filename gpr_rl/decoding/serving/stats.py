"""What a service counts, and how long its answers took."""

import math
import threading
from collections import deque
from dataclasses import dataclass

import numpy as np

_NUM_LATENCIES = 4_096
_NUM_BATCHES = 512


@dataclass(frozen=True, kw_only=True)
class ServiceStats:
    """A service at one moment. Counts are since its start, the rest is over the latest answers.

    accepted = answered + failed + cancelled + pending. What is over nothing yet is NaN.
    """

    accepted: int
    """Requests that were taken, answers from the cache included."""
    answered: int
    failed: int
    """Answered with an error."""
    cancelled: int
    """Taken back by the caller while they waited."""
    refused: int
    """Not accepted, since the queue was full."""
    hits: int
    """Answered from the cache."""
    queue_length: int
    """Requests that wait for a batch."""
    width: int
    """Of the beam, as the queue is now."""
    p50_ms: float
    """Time from submission to answer, median of the latest 4,096 answers."""
    p95_ms: float
    p99_ms: float
    mean_width: float
    """Over requests of the latest 512 batches."""
    mean_batch: float
    """Requests in a batch, over the latest 512 batches."""

    @property
    def pending(self) -> int:
        """Accepted requests without an answer yet."""
        return self.accepted - self.answered - self.failed - self.cancelled

    @property
    def hit_rate(self) -> float:
        """Share of the accepted requests that the cache answered."""
        return self.hits / self.accepted if self.accepted else math.nan


class Meter:
    """Counts and windows behind `ServiceStats`. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = dict.fromkeys(
            ("accepted", "answered", "failed", "cancelled", "refused", "hits"), 0
        )
        self._latency_ms: deque[float] = deque(maxlen=_NUM_LATENCIES)
        self._batch: deque[tuple[int, int, float]] = deque(maxlen=_NUM_BATCHES)

    def count(self, *names: str) -> None:
        """Add one to each named count."""
        with self._lock:
            for name in names:
                self._count[name] += 1

    def answer(self, latency_s: float) -> None:
        """Count an answer and its time."""
        with self._lock:
            self._count["answered"] += 1
            self._latency_ms.append(1_000.0 * latency_s)

    def batch(self, size: int, width: int, seconds: float) -> None:
        """Remember a searched batch."""
        with self._lock:
            self._batch.append((size, width, seconds))

    def seconds_for(self, num_requests: int) -> float:
        """Return how long a search of so many takes at the pace of the latest; 1 before any."""
        with self._lock:
            batches = list(self._batch)
        size = sum(batch[0] for batch in batches)
        return num_requests * sum(batch[2] for batch in batches) / size if size else 1.0

    def stats(self, queue_length: int, width: int) -> ServiceStats:
        """Return everything as of now."""
        with self._lock:
            count = dict(self._count)
            latency, batches = np.array(self._latency_ms), np.array(self._batch).reshape(-1, 3)
        p50, p95, p99 = np.percentile(latency, (50, 95, 99)) if len(latency) else [math.nan] * 3
        size, widths = batches[:, 0], batches[:, 1]
        return ServiceStats(
            **count,
            queue_length=queue_length,
            width=width,
            p50_ms=float(p50),
            p95_ms=float(p95),
            p99_ms=float(p99),
            mean_width=float(size @ widths / size.sum()) if len(batches) else math.nan,
            mean_batch=float(size.mean()) if len(batches) else math.nan,
        )
