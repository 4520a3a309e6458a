"""A queue that is emptied a batch at a time."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from gpr_rl.decoding.serving.stats import Meter

Item = TypeVar("Item")


class Overloaded(RuntimeError):
    """The queue is full: the request was not accepted. Ask again after `retry_after_s` seconds."""

    def __init__(self, num_waiting: int, retry_after_s: float) -> None:
        super().__init__(
            f"overloaded: {num_waiting} requests wait already;"
            f" try again in about {retry_after_s:.2g} s"
        )
        self.retry_after_s = retry_after_s


class Closed(RuntimeError):
    """The service takes no more requests."""

    def __init__(self) -> None:
        super().__init__("the service is closed and takes no more requests")


class MicroBatches(Generic[Item]):
    """A bounded queue. One thread takes batches, any number of threads put items.

    Args:
        max_batch: Items in a batch, at most.
        max_queue: Items that may wait, at most.
        deadline_s: How long after its submission the first item waits for others.
        meter: Counts what was accepted and refused.
        clock: Gives seconds, from any origin.
    """

    def __init__(
        self,
        max_batch: int,
        max_queue: int,
        deadline_s: float,
        meter: Meter,
        clock: Callable[[], float],
    ) -> None:
        self.max_batch, self.max_queue = max_batch, max_queue
        self.is_closed = False
        self._deadline_s = min(deadline_s, threading.TIMEOUT_MAX)
        self._meter, self._clock = meter, clock
        self._waiting: deque[tuple[Item, float]] = deque()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._waiting)

    def load(self, num_waiting: int) -> float:
        """Return 0 while one batch can take all that wait, 1 at a full queue, a line between."""
        if num_waiting <= self.max_batch:
            return 0.0
        return (num_waiting - self.max_batch) / (self.max_queue - self.max_batch)

    def put(self, item: Item, submitted: float) -> None:
        """Let an item wait; never blocks.

        Raises:
            Overloaded: The queue is full.
            Closed: It was closed.
        """
        with self._changed:
            if self.is_closed:
                raise Closed
            num_waiting = len(self._waiting)
            if num_waiting >= self.max_queue:
                self._meter.count("refused")
                raise Overloaded(num_waiting, self._meter.seconds_for(num_waiting))
            self._meter.count("accepted")
            self._waiting.append((item, submitted))
            if num_waiting + 1 in (1, self.max_batch):  # what `take` may be waiting for
                self._changed.notify()

    def take(self) -> tuple[list[Item], int]:
        """Wait for a batch; return it and how many waited. Empty once closed and empty."""
        with self._changed:
            while not self._waiting and not self.is_closed:
                self._changed.wait()
            while self._waiting and len(self._waiting) < self.max_batch and not self.is_closed:
                left = self._waiting[0][1] + self._deadline_s - self._clock()
                if left <= 0:
                    break
                self._changed.wait(left)
            num_waiting = len(self._waiting)
            size = min(num_waiting, self.max_batch)
            return [self._waiting.popleft()[0] for _ in range(size)], num_waiting

    def close(self) -> None:
        """Put no more; `take` gives what waits without delay."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()
