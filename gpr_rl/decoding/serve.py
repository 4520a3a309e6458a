"""A service in the process: requests from many threads, searched in small batches.

Dims: B requests, K candidates, W beams, N ads, L levels.
"""

import atexit
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor

from gpr_rl.checks import check_finite, check_whole
from gpr_rl.decoding.beam import beam_search
from gpr_rl.decoding.serving.answer import Answer, for_future, resized, split
from gpr_rl.decoding.serving.cache import AnswerCache, Found
from gpr_rl.decoding.serving.collate import collate_requests, eligibility_key, request_key
from gpr_rl.decoding.serving.masks import Mask, mask_of, stacked
from gpr_rl.decoding.serving.precision import at_precision
from gpr_rl.decoding.serving.queue import Closed, MicroBatches, Overloaded
from gpr_rl.decoding.serving.stats import Meter, ServiceStats
from gpr_rl.decoding.trie import CodeTrie
from gpr_rl.schema import Candidates, Request

__all__ = ["Answer", "Closed", "Overloaded", "Recommender", "ServiceStats"]


@dataclass(eq=False)
class _Job:
    request: Any
    mask: Mask
    num_candidates: int
    key: Hashable  # without the catalogue's version; None: not cached
    submitted: float
    answer: Answer


class Recommender:
    """Answers single requests from any number of threads by one search per batch of them.

    Batches: a thread takes the first request that waits and what comes within `deadline_ms` of its
    submission, `max_batch` at most. A request's answer does not depend on the others in its batch,
    up to the rounding of a model's products at different batch sizes: 1e-6 or so in float32.

    Width: `width` while at most one batch waits. From there it falls in a straight line with the
    queue, to `min_width` when the queue is full, and rises again as the queue empties. An answer is
    what `search` gives for that request alone at `answer.width`, cut to K candidates; where the
    width is below K, the rest is padding (`valid` False). With `min_width` = K lists are always
    whole.

    Admission: a request that finds `max_queue` others waiting is refused at once (`Overloaded`).
    An accepted one always gets a result or an error, also through `close`. A batch that fails is
    halved and tried again, so that only a request that fails alone gets the error.

    Cache: an answer is found again for `cache_s` seconds under (user id, digest of the tokens,
    digest of the eligible ads, catalogue version), see `request_key`; fewer candidates than K are
    cut from the same entry. One found by a narrower beam than the present width is searched anew.
    A full queue still answers from the cache.

    Catalogue: `add`, `retire` and `set_active` change the trie, the world's own if it was given a
    world. A request submitted after such a call has returned is answered from the new catalogue.
    An ad that came after a request's mask was made may be shown if the mask is the world's, which
    knows no targeting for it, and not if the caller gave it.

    The policy's weights must not change. Use it in a `with` block or call `close`.

    Args:
        policy: See `gpr_rl.decoding.policy.Policy`.
        world_or_trie: A `CodeTrie`, or a world with `trie` and `eligible(request_id)`.
        max_batch: Requests in a search, at most.
        deadline_ms: How long the first request of a batch waits for others.
        cache_s: Life of a cached answer in seconds; 0: no cache.
        precision: `float32`, or `bf16` for the model's products.
        num_candidates: K.
        width: Of the beam when idle, at least K; None: K.
        min_width: Of the beam when the queue is full; None: half of K.
        max_queue: Requests that may wait; None: four batches.
        cache_size: Answers in the cache, at most.
        search: Called as `search(policy, requests, trie, width, eligible)`, e.g. a
            `functools.partial` of `beam_search` with a value weight.
        collate: Puts requests together.
        key: What of a request the answer depends on; None: don't cache this one.
        clock: Gives seconds, from any origin.

    Raises:
        ValueError: A size, time or precision out of range.
    """

    def __init__(
        self,
        policy: Any,
        world_or_trie: Any,
        max_batch: int = 64,
        deadline_ms: int | float = 5.0,
        cache_s: int | float = 60.0,
        precision: str = "float32",
        *,
        num_candidates: int = 40,
        width: int | None = None,
        min_width: int | None = None,
        max_queue: int | None = None,
        cache_size: int = 4_096,
        search: Callable[..., Candidates] = beam_search,
        collate: Callable[[Sequence[Any]], Any] = collate_requests,
        key: Callable[[Any], Hashable] = request_key,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_whole(1, max_batch=max_batch, num_candidates=num_candidates)
        check_whole(0, cache_size=cache_size)
        check_finite(0, deadline_ms=deadline_ms, cache_s=cache_s)
        self.num_candidates, self.max_batch = num_candidates, max_batch
        self.width = num_candidates if width is None else width
        self.min_width = (num_candidates + 1) // 2 if min_width is None else min_width
        self.max_queue = 4 * max_batch if max_queue is None else max_queue
        check_whole(num_candidates, width=self.width)
        check_whole(1, min_width=self.min_width)
        check_whole(max_batch, max_queue=self.max_queue)
        if self.min_width > self.width:
            raise ValueError(f"min_width must be at most width = {self.width}, got {min_width}")
        is_trie = isinstance(world_or_trie, CodeTrie)
        self.world = None if is_trie else world_or_trie
        self.trie: CodeTrie = world_or_trie if is_trie else world_or_trie.trie
        self._policy = at_precision(policy, precision, self.trie.tree.device)
        self._search, self._collate, self._key, self._clock = search, collate, key, clock
        self._cache = AnswerCache(cache_s, cache_size, clock)
        self._meter = Meter()
        self._queue: MicroBatches[_Job] = MicroBatches(
            max_batch, self.max_queue, deadline_ms / 1_000.0, self._meter, clock
        )
        self._thread = threading.Thread(target=self._work, name="recommender", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a daemon thread would be stopped in the middle of a batch

    def recommend(
        self,
        request: Any,
        eligible: Bool[Tensor, " N"] | None = None,
        num_candidates: int | None = None,
    ) -> Answer:
        """Return the future of the candidates, batch [1], of one request.

        `eligible` says which ads may be shown; None: those of the world, or all of a bare trie.
        `num_candidates` is at most K; None: K.

        Raises:
            Overloaded: The queue is full.
            Closed: `close` was called.
            ValueError: Several requests, one that is not of the world, too many candidates, or
                `eligible` misshapen.
        """
        job = self._job(request, eligible, num_candidates)
        if self.closed:
            raise Closed
        if (found := self._look_up(job)) is None:
            self._queue.put(job, job.submitted)
        else:
            self._meter.count("accepted", "hits")
            self._finish(job, found, cached=True)
        return job.answer

    def add(self, codes: Int[Tensor, "n L"], ad_ids: Int[Tensor, " n"], value: Any = None) -> None:
        """Add ads to the catalogue, see `CodeTrie.add`."""
        self.trie.add(codes, ad_ids, value)

    def retire(self, ad_ids: Int[Tensor, " n"]) -> None:
        """Take ads out of the catalogue, see `CodeTrie.retire`."""
        self.trie.retire(ad_ids)

    def set_active(self, mask: Bool[Tensor, " N"]) -> None:
        """Say which ads of the catalogue may be shown at all, see `CodeTrie.set_active`."""
        self.trie.set_active(mask)

    @property
    def version(self) -> int:
        """The catalogue's version."""
        return self.trie.version

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._queue.is_closed

    def stats(self) -> ServiceStats:
        """Return counts, latencies and widths as of now."""
        num_waiting = len(self._queue)
        return self._meter.stats(num_waiting, self._width_at(num_waiting))

    def retry_after_s(self) -> float:
        """Return in how many seconds what waits now will have been searched, about."""
        return self._meter.seconds_for(len(self._queue))

    def close(self, wait: bool = True) -> None:
        """Take no more requests and finish those accepted, whatever the deadline.

        With `wait` this returns when all are answered. Further calls do no harm.
        """
        self._queue.close()
        if wait:
            self._thread.join()
            atexit.unregister(self.close)

    def __enter__(self) -> "Recommender":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _job(self, request: Any, eligible: Tensor | None, num_candidates: int | None) -> _Job:
        submitted = self._clock()
        number = self.num_candidates if num_candidates is None else num_candidates
        check_whole(1, num_candidates=number)
        if number > self.num_candidates:
            raise ValueError(
                f"num_candidates must be at most {self.num_candidates}, got {num_candidates}"
            )
        if isinstance(request, Request) and tuple(request.batch_size) != (1,):
            raise ValueError(f"request must be one, of batch [1], got {[*request.batch_size]}")
        mask = mask_of(request, eligible, self.trie, self.world)
        key = self._key(request)
        if key is not None:
            key = key, eligibility_key(mask.eligible), mask.is_own
        return _Job(request, mask, number, key, submitted, Answer())

    def _width_at(self, num_waiting: int) -> int:
        return round(self.width - self._queue.load(num_waiting) * (self.width - self.min_width))

    def _look_up(self, job: _Job) -> Found | None:
        if job.key is None:
            return None
        return self._cache.get((job.key, self.version), self._width_at(len(self._queue)))

    def _work(self) -> None:
        while True:
            jobs, num_waiting = self._queue.take()
            if not jobs:
                return
            asked = [job for job in jobs if job.answer.set_running_or_notify_cancel()]
            for _ in range(len(jobs) - len(asked)):
                self._meter.count("cancelled")
            if asked:
                self._answer(asked, self._width_at(num_waiting))

    def _answer(self, jobs: list[_Job], width: int) -> None:
        """Give every job its result, or an error to those that fail alone."""
        try:
            found = self._found(jobs, width)
        except BaseException as error:  # even SystemExit must not end this thread
            if len(jobs) > 1:
                half = len(jobs) // 2
                self._answer(jobs[:half], width)
                self._answer(jobs[half:], width)
            else:
                self._meter.count("failed")
                jobs[0].answer.set_exception(for_future(error))
            return
        for job, one in zip(jobs, found, strict=True):
            self._finish(job, one)

    def _found(self, jobs: list[_Job], width: int) -> list[Found]:
        """Search a batch; return and cache what it gives for each job."""
        started, trie = self._clock(), self.trie.snapshot()  # masks and search see one catalogue
        version = trie.version
        request = self._collate([job.request for job in jobs])
        eligible = stacked([job.mask for job in jobs], trie)
        found = self._search(self._policy, request, trie, width, eligible)
        if len(found) != len(jobs):
            raise ValueError(f"{len(jobs)} requests were put together, {len(found)} came out")
        whole = resized(found, self.num_candidates)
        rows = [Found(row, width, version) for row in split(whole)]
        for job, row in zip(jobs, rows, strict=True):
            if job.key is not None:
                self._cache.put((job.key, version), row)
        self._meter.batch(len(jobs), width, self._clock() - started)
        return rows

    def _finish(self, job: _Job, found: Found, *, cached: bool = False) -> None:
        answer, latency_s = job.answer, self._clock() - job.submitted
        answer.width, answer.version, answer.cached = found.width, found.version, cached
        answer.latency_ms = 1_000.0 * latency_s
        self._meter.answer(latency_s)
        answer.set_result(resized(found.candidates, job.num_candidates))
