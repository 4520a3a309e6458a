"""Where the seconds of a training step go."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Adds up wall-clock seconds by name: `with clock("rankers"): ...`. Sections don't nest."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the time of a `with` block under a name."""
        started = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self._seconds[name] = self._seconds.get(name, 0.0) + elapsed

    def measures(self) -> dict[str, float]:
        """Return the seconds of each section as `time/NAME_s`, and start again from zero."""
        found = {f"time/{name}_s": seconds for name, seconds in self._seconds.items()}
        self._seconds = {}
        return found
