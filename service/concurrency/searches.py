"""A thread of its own for searches through a catalog, by title or by category, so that they take no other thread.

Searches that wait are bounded, and one whose client has left or whose time is up before it began is not begun.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from service.errors import DeadlineExceeded, Overloaded
from service.observability.metrics import Metrics

T = TypeVar("T")

WAITING = 32  # searches that may wait or run


class Searches:
    """Runs searches one after the other; `close` after the last."""

    def __init__(self, limit_s: float, metrics: Metrics) -> None:
        self._limit_s, self._metrics = limit_s, metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="anyo-search")
        self._waiting = 0

    async def run(self, search: Callable[[], T]) -> T:
        """Return what `search` returns; raises Overloaded, DeadlineExceeded."""
        if self._waiting >= WAITING:
            self._metrics.rejected("catalog_full").inc()
            raise Overloaded(f"{self._waiting} searches of the catalog are waiting already", retry_after=1)
        future = self._thread.submit(search)
        # Counted until the thread is rid of it: a search that is given up while it runs still takes its time.
        self._waiting += 1
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: None if loop.is_closed() else loop.call_soon_threadsafe(self._done))
        try:
            async with asyncio.timeout(self._limit_s):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise DeadlineExceeded(f"the search did not end within {self._limit_s:g} s") from None

    def close(self) -> None:
        """Begin no further search."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _done(self) -> None:
        self._waiting -= 1
