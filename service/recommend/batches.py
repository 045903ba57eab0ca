"""Many requests in one call: a bounded number of them is in the engine at a time, and each has its own result.

All batches of a process share the places, so that several large ones do not fill the queue that single requests wait
in. An entry that the engine refuses under load waits and tries again until the deadline of its batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from service.errors import AnyoError, DeadlineExceeded, Overloaded
from service.observability.metrics import Metrics
from service.recommend.base import together

T = TypeVar("T")
Entry = Callable[[], Awaitable[T]]

LONGEST_WAIT_S = 0.25  # after a refusal, where no other entry ends before


class Batches:
    """Runs the entries of batches on the event loop, `places` of them at a time, those of all batches together."""

    def __init__(self, places: int, metrics: Metrics) -> None:
        self._places, self._metrics = places, metrics
        self._free = asyncio.Semaphore(places)  # first come, first served: two batches share the places
        self._refused: deque[asyncio.Event] = deque()  # entries that wait for room in the engine

    async def run(self, entries: Sequence[Entry[T]], deadline: float) -> list[T | AnyoError]:
        """Return what each entry gives, in order, or the error that it raised. `deadline` is a time of
        `time.monotonic`; an entry that has not begun by then gives DeadlineExceeded."""
        results: dict[int, T | AnyoError] = {}
        numbers = iter(range(len(entries)))
        workers = min(self._places, len(entries))
        await together(self._work(entries, numbers, results, deadline) for _ in range(workers))
        return [results[number] for number in range(len(entries))]

    async def _work(
        self, entries: Sequence[Entry[T]], numbers: Iterator[int], results: dict[int, T | AnyoError], deadline: float
    ) -> None:
        for number in numbers:
            async with self._free:
                result = await self._one(entries[number], deadline)
            if self._refused:  # this one has left room for one of them
                self._refused.popleft().set()
            self._metrics.batch_entries("error" if isinstance(result, AnyoError) else "answered").inc()
            results[number] = result

    async def _one(self, entry: Entry[T], deadline: float) -> T | AnyoError:
        while True:
            if time.monotonic() >= deadline:
                return DeadlineExceeded("the batch ended at its deadline before this entry; send it again")
            try:
                return await entry()
            except Overloaded as error:
                if time.monotonic() >= deadline:
                    return error
            except AnyoError as error:
                return error
            await self._room()

    async def _room(self) -> None:
        room = asyncio.Event()
        self._refused.append(room)
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(room.wait(), LONGEST_WAIT_S)
        finally:
            if not room.is_set():
                self._refused.remove(room)
