"""Calls to replicas that may die: each is repeated until one answers, from threads that wait for it.

What is called (encoding, searching) changes nothing, so that it may run twice. Knows neither Ray nor HTTP.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import TypeVar

import structlog

log = structlog.get_logger(__name__)

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
Call = Callable[[], Awaitable[T]]

FIRST_WAIT_S, LONGEST_WAIT_S = 0.02, 0.5


class Calls:
    """Runs calls on an event loop of its own; `close` ends it.

    Args:
        lost: whether an error says that a replica is gone or does not answer, so that another may be asked.
        patience_s: how long a call is repeated, and how long one attempt may take at most.
        attempt_s: after so long without an answer another replica is asked.
    """

    def __init__(self, lost: Callable[[BaseException], bool], patience_s: float, attempt_s: float) -> None:
        self._lost, self._patience_s, self._attempt_s = lost, patience_s, attempt_s
        self.retries = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="anyo-calls", daemon=True)
        self._thread.start()

    def one(self, call: Call[T]) -> T:
        """Return what a call gives; raises what it raises. Blocks: not for an event loop's thread."""
        return asyncio.run_coroutine_threadsafe(self._persistently(call), self._loop).result()

    def all(self, calls: Mapping[K, Call[T]]) -> dict[K, T]:
        """Return what all of them give, called at the same time; raises what the first that fails raises. Blocks."""

        async def together() -> list[T]:
            return await asyncio.gather(*map(self._persistently, calls.values()))

        found = asyncio.run_coroutine_threadsafe(together(), self._loop).result()
        return dict(zip(calls, found, strict=True))

    def close(self) -> None:
        """Stop the loop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(1.0)
        if not self._loop.is_running():
            self._loop.close()

    async def _persistently(self, call: Call[T]) -> T:
        end, wait = time.monotonic() + self._patience_s, FIRST_WAIT_S
        while True:
            try:
                return await asyncio.wait_for(_awaited(call), min(self._attempt_s, max(0.001, end - time.monotonic())))
            except Exception as error:
                if not (isinstance(error, TimeoutError) or self._lost(error)) or time.monotonic() + wait >= end:
                    raise
                self.retries += 1
                log.warning("a replica did not answer; another is asked", error=repr(error)[:200])
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_S)


async def _awaited(call: Call[T]) -> T:
    return await call()
