"""Requests that arrive whether or not earlier ones are answered, and what became of them.

A service that falls behind is then seen to: latency counts from when a request was due, so waiting
before it could be handed over counts as well.

Dims: n arrivals, K candidates.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpr_rl.schema import Candidates

PATIENCE_S = 120.0
"""A service that gives no answer for so long is broken."""


class Traffic(NamedTuple):
    """Arrivals in their order."""

    due_s: NDArray[np.float64]
    """[n], rising, from the start on."""
    request: NDArray[np.int64]
    """[n], which of the requests there are."""

    def then(self, other: "Traffic", after_s: float) -> "Traffic":
        """Return this traffic, and from `after_s` on the other."""
        due = np.concatenate([self.due_s, other.due_s + after_s])
        return Traffic(due, np.concatenate([self.request, other.request]))


def poisson_traffic(rate_per_s: float, seconds: float, num_requests: int, seed: int) -> Traffic:
    """Return a Poisson process: a Poisson number of arrivals, each at a uniform time."""
    rng = np.random.default_rng(seed)
    number = int(rng.poisson(rate_per_s * seconds))
    due = np.sort(rng.uniform(0.0, seconds, number))
    return Traffic(due, rng.integers(num_requests, size=number))


class Ledger:
    """What became of every arrival: a few numbers each, and a few whole answers."""

    def __init__(self, traffic: Traffic, num_kept: int) -> None:
        number = len(traffic.due_s)
        self.traffic = traffic
        self.answered_s = np.full(number, np.nan)
        """[n], when; NaN where refused."""
        self.width = np.zeros(number, dtype=np.int64)
        self.first_ad = np.full(number, -1)
        self.kept: dict[int, tuple[Candidates, int]] = {}
        """Answers with their widths, by arrival."""
        self._num_kept, self._every = num_kept, max(1, number // max(1, num_kept))
        self._errors: list[BaseException] = []
        self._num_open, self._done = 0, threading.Semaphore(0)

    def follow(self, index: int, answer: "Future[Candidates]", start: float) -> None:
        """Note an arrival's answer when it comes; `start` is when the traffic began."""
        self._num_open += 1
        answer.add_done_callback(partial(self._note, index, start))

    def _note(self, index: int, start: float, answer: Any) -> None:
        now = time.perf_counter() - start
        if error := answer.exception():
            self._errors.append(error)
        else:
            found = answer.result()
            self.answered_s[index], self.width[index] = now, answer.width
            self.first_ad[index] = int(found.ad_id[0, 0])
            if index % self._every == 0 and len(self.kept) < self._num_kept:
                self.kept[index] = found, answer.width
        self._done.release()

    def wait(self) -> None:
        """Wait for all answers.

        Raises:
            TimeoutError: One does not come.
        """
        for _ in range(self._num_open):
            if not self._done.acquire(timeout=PATIENCE_S):
                raise TimeoutError(f"the service gave no answer for {PATIENCE_S:.0f} s")
        if self._errors:
            raise self._errors[0]

    @property
    def refused(self) -> NDArray[np.bool_]:
        """[n], which were not taken."""
        return np.isnan(self.answered_s)

    def latency_ms(self, until_s: float = np.inf) -> NDArray[np.float64]:
        """Return the time from due to answered of those due before `until_s`, refused ones out."""
        kept = ~self.refused & (self.traffic.due_s < until_s)
        return 1e3 * (self.answered_s[kept] - self.traffic.due_s[kept])


def drive(
    recommend: Callable[[Any], Any],
    requests: Sequence[Any],
    ledger: Ledger,
    refusal: type[Exception],
) -> None:
    """Hand over every arrival when it is due, or at once where that is past; wait for the answers.

    `recommend` returns the future of an answer that also has its `width`, or raises `refusal`.
    """
    due, which = ledger.traffic
    start = time.perf_counter()
    for index, (at, number) in enumerate(zip(due.tolist(), which.tolist(), strict=True)):
        left = start + at - time.perf_counter()
        if left > 0:
            time.sleep(left)
        try:
            answer = recommend(requests[number])
        except refusal:
            continue
        ledger.follow(index, answer, start)
    ledger.wait()


def phase_figures(ledger: Ledger, seconds: float) -> dict[str, float]:
    """Return rates and latencies of what was due in the first `seconds`."""
    number = int((ledger.traffic.due_s < seconds).sum())
    figures = {
        "offered_per_s": number / seconds,
        "answered_per_s": float((ledger.answered_s <= seconds).sum()) / seconds,
    }
    latency = ledger.latency_ms(seconds)
    if len(latency):
        values = np.percentile(latency, (50, 95, 99)).tolist()
        figures |= dict(zip(("p50_ms", "p95_ms", "p99_ms"), values, strict=True))
    return figures


def recovery_s(ledger: Ledger, end_s: float, full_width: int) -> float | None:
    """Return how long after `end_s` arrivals were still refused or searched with a narrower beam.

    0 where none was; None where the very last one still is, or none came after `end_s`.
    """
    due = ledger.traffic.due_s
    after = due >= end_s
    poor = after & (ledger.refused | (ledger.width < full_width))
    if not after.any() or poor[-1]:
        return None
    return float(due[poor][-1] - end_s) if poor.any() else 0.0
