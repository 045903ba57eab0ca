"""Free titles wait in a queue of their own until the text network has read them, and none keeps out another request's.

Long titles cost as much as histories, so their positions are counted where they are admitted. The waiting requests take
turns, one title each, in batches of a bounded size: a request with one title waits for a pass or two, however many
titles others have sent. A request that would wait too long for all of its own is refused.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from modeling.encoder.prompt import FreeItem
from modeling.encoder.user_encoder import CannotReadText
from service.engine.base import LONGEST_RETRY_AFTER_S, failed, smoothed
from service.engine.work import one_by_one_on_failure
from service.errors import AnyoError, DeadlineExceeded, NotReady, Overloaded
from service.observability.metrics import Metrics

MOST_POSITIONS = 64  # of a title, which is read up to some fifty tokens
BATCH_POSITIONS = 8 * MOST_POSITIONS  # enough to be efficient; everyone waits for the end of such a pass

ReadTitles = Callable[[Sequence[str]], list[FreeItem]]


def positions_of(title: str) -> int:
    """Return the positions that a title takes at most: a token has a byte at least, two are put around."""
    return min(MOST_POSITIONS, 2 + len(title.encode()))


@dataclass(slots=True, eq=False)
class _Asked:
    """The titles of one request that have not been taken yet, and those that have been read."""

    titles: deque[str]
    left: int  # positions
    missing: int  # titles
    answer: asyncio.Future[list[FreeItem]]
    read: list[FreeItem] = field(default_factory=list)


class TitleQueue:
    """Reads titles on a thread of its own. For one event loop; `close` after the last."""

    def __init__(self, read: ReadTitles, metrics: Metrics, *, most_positions: int, patience_s: float) -> None:
        """`most_positions` may wait; `patience_s` is the longest wait that is known beforehand (0: any)."""
        self._read, self._metrics = read, metrics
        self._most, self._patience_s = most_positions, patience_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="anyo-titles")
        self._waiting: deque[_Asked] = deque()  # in the order of their turns
        self._running = 0  # positions being read
        self._rate = 0.0  # positions a second

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._read = _closed  # it holds the model, and its owner holds this queue

    @property
    def positions(self) -> int:
        """Positions that wait."""
        return sum(asked.left for asked in self._waiting)

    async def read(self, titles: Sequence[str], deadline: float) -> list[FreeItem]:
        """Return titles as items of a history, in any order, before `deadline` (a time of `time.monotonic`).

        Raises CannotReadText, DeadlineExceeded, ModelError, NotReady, Overloaded. Cancelling it takes the titles out of
        the queue.
        """
        left = sum(map(positions_of, titles))
        self._refuse_if_slow(left)
        answer: asyncio.Future[list[FreeItem]] = asyncio.get_running_loop().create_future()
        asked = _Asked(deque(titles), left, len(titles), answer)
        self._waiting.append(asked)
        self._take()
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await answer
        except TimeoutError:
            raise DeadlineExceeded("the titles in history were not read within the deadline", field="history") from None
        finally:
            if asked.titles and asked in self._waiting:
                self._waiting.remove(asked)

    def _refuse_if_slow(self, left: int) -> None:
        """Raise Overloaded where others' turns take too long: each has as many as this request has, at most."""
        before = self._running + sum(min(asked.left, left) for asked in self._waiting)
        wait = before / self._rate if self._rate else 0.0
        if self._waiting and self.positions + left > self._most:
            message = f"{self.positions} of {self._most} positions of free titles are queued"
        elif self._patience_s and wait > self._patience_s:
            message = f"the free titles that come before take about {wait:.1f} s"
        else:
            return
        self._metrics.rejected("titles_full").inc()
        raise Overloaded(message, field="history", retry_after=max(1, min(LONGEST_RETRY_AFTER_S, math.ceil(wait))))

    def _take(self) -> None:
        """Send the next batch to the thread, unless it is busy: a title of everyone in turn, until it is full."""
        if self._running or not self._waiting:
            return
        batch: list[tuple[_Asked, str]] = []
        while self._waiting and self._running < BATCH_POSITIONS:
            asked = self._waiting.popleft()
            title = asked.titles.popleft()
            asked.left -= (positions := positions_of(title))
            self._running += positions
            batch.append((asked, title))
            if asked.titles:
                self._waiting.append(asked)
        started, titles = time.monotonic(), [title for _, title in batch]
        try:
            reading = asyncio.get_running_loop().run_in_executor(
                self._thread, one_by_one_on_failure, self._read, titles
            )
        except RuntimeError:  # the thread has been stopped
            batch += [(asked, "") for asked in self._waiting]
            self._waiting.clear()
            self._deliver(batch, [_draining()] * len(batch))
            return
        reading.add_done_callback(partial(self._done, batch, started))

    def _done(self, batch: Sequence[tuple[_Asked, str]], started: float, reading: asyncio.Future[list[Any]]) -> None:
        if reading.cancelled():
            results: Sequence[Any] = [_draining()] * len(batch)
        elif (error := reading.exception()) is not None:
            results = [error] * len(batch)
        else:
            results = reading.result()
            self._rate = smoothed(self._rate, self._running / max(time.monotonic() - started, 1e-6))
        self._deliver(batch, results)

    def _deliver(self, batch: Sequence[tuple[_Asked, str]], results: Sequence[Any]) -> None:
        self._running = 0
        for (asked, _), result in zip(batch, results, strict=True):
            if asked.answer.done():
                continue
            if isinstance(result, FreeItem):
                asked.read.append(result)
                asked.missing -= 1
                if not asked.missing:
                    asked.answer.set_result(asked.read)
            elif isinstance(result, CannotReadText | AnyoError):
                asked.answer.set_exception(result)
            else:
                asked.answer.set_exception(failed(result))
        self._take()


def _closed(titles: Sequence[str]) -> list[FreeItem]:
    raise _draining()


def _draining() -> NotReady:
    return NotReady("the service is shutting down", code="draining")
