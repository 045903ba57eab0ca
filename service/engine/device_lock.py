"""One device, two kinds of work: a dense forward pass goes first, generation gets the device for one pass at a time.

Dense passes do not exclude each other. A pass of generation is alone on the device, and begins only while no dense pass
runs and no dense request waits, so a dense request waits for the rest of one such pass at most, however long the texts
are that are being written. Where nothing is generated, a dense pass costs one uncontended lock.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

# Between two looks at whether dense requests still wait: a queue can also become empty because a client left.
LOOK_S = 0.005


class DeviceLock:
    """Lock of the device, shared by the threads of all engines of a process; dense passes have priority."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._dense = 0  # passes that run or want to
        self._generating = False
        self._queues: dict[Callable[[], int], Callable[[], int]] = {}

    def watch(self, waiting: Callable[[], int], requests: Callable[[], int] | None = None) -> None:
        """Count what `waiting` returns as dense work that comes before generation, and what `requests` returns as the
        requests that it belongs to (None: as many)."""
        with self._free:
            self._queues[waiting] = requests or waiting

    def unwatch(self, waiting: Callable[[], int]) -> None:
        """Forget a queue, and whatever it belongs to."""
        with self._free:
            self._queues.pop(waiting, None)
            self._free.notify_all()

    def dense_waiting(self) -> int:
        """Return how many entries of dense queues wait for the device."""
        return sum(waiting() for waiting in tuple(self._queues))

    def dense_requests(self) -> int:
        """Return how many dense requests wait for the device; one with many entries counts once."""
        return sum(requests() for requests in tuple(self._queues.values()))

    @contextlib.contextmanager
    def dense(self) -> Iterator[None]:
        """Hold the device for a dense pass; no pass of generation begins from the call on."""
        with self._free:
            self._dense += 1
            while self._generating:
                self._free.wait()
        try:
            yield
        finally:
            with self._free:
                self._dense -= 1
                self._free.notify_all()

    @contextlib.contextmanager
    def turn(self, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the device for one pass of generation; what `check` raises while it waits ends the waiting."""
        with self._free:
            while self._generating or self._dense or self.dense_waiting():
                check()
                self._free.wait(LOOK_S)
            self._generating = True
        try:
            yield
        finally:
            with self._free:
                self._generating = False
                self._free.notify_all()
