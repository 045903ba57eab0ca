"""A bounded number of calls at once on other threads, and a bounded number that wait: what a caller can make expensive
must not take the threads, or the interpreter, from everyone else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from service.errors import Overloaded
from service.metrics import Metrics

R = TypeVar("R")


class Slots:
    """Calls on threads; for one event loop."""

    def __init__(self, metrics: Metrics, reason: str, *, at_once: int, waiting: int) -> None:
        """`reason` is that of refusals, in the metrics."""
        self._metrics, self._reason = metrics, reason
        self._free, self._most, self._asked = asyncio.Semaphore(at_once), at_once + waiting, 0

    async def run(self, function: Callable[[], R]) -> R:
        """Return what a function returns; raises Overloaded where too many wait already."""
        if self._asked >= self._most:
            self._metrics.rejected(self._reason).inc()
            raise Overloaded(f"{self._asked} searches of the catalog are under way", retry_after=1)
        self._asked += 1
        try:
            async with self._free:
                # A client that leaves does not stop the thread: its place is free when the thread is.
                work = asyncio.ensure_future(asyncio.to_thread(function))
                try:
                    return await asyncio.shield(work)
                finally:
                    await asyncio.wait([work])
        finally:
            self._asked -= 1
