"""Common part of the engines: a bounded queue, threads behind it, and waiters on the event loop in front of it.

`engine.py` (dense) and `generative_engine.py` add what their threads do with a batch. If a thread dies, every waiter
gets an error, the engine refuses further work and `trouble()` tells liveness and readiness.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

import structlog

from index.unavailable import SearchUnavailable
from service.engine.batcher import Batcher, Entry, EntryTooLong, Limits, QueueFull, Waiter
from service.errors import AnyoError, DeadlineExceeded, IndexUnavailable, ModelError, NotReady, Overloaded, TooLarge
from service.observability.metrics import Metrics

log = structlog.get_logger(__name__)

LONGEST_RETRY_AFTER_S = 60

REHEARSING: ContextVar[bool] = ContextVar("REHEARSING", default=False)
"""True in the task that checks an artifact before it serves: a failure refuses the artifact, and no user meets it."""

P = TypeVar("P")  # what is computed
R = TypeVar("R")  # what comes back

OnStep = Callable[[int, str], None]


class PendingResult(asyncio.Future[R]):
    """The answer to come; `on_step` is told on the way to it, on the event loop, where there is anything to tell."""

    on_step: OnStep | None = None


def _expire(ticket: PendingResult[Any]) -> None:
    if not ticket.done():
        ticket.set_exception(DeadlineExceeded("the request was not answered within its deadline"))


def smoothed(before: float, now: float) -> float:
    """Return a running mean that follows the times."""
    return 0.8 * before + 0.2 * now if before else now


class QueuedEngine(Generic[P, R]):
    """A queue, its threads and its waiters; `start`, then `run` of the engine in question, then `close`."""

    full_reason = "queue_full"  # in the metrics
    batch_setting = "ANYO_MAX_BATCH_TOKENS"
    running_what = "a forward pass"

    def __init__(self, limits: Limits, metrics: Metrics, stall_seconds: float) -> None:
        self._metrics = metrics
        self._stall_seconds = stall_seconds
        self._batcher: Batcher[P, PendingResult[R]] = Batcher(limits, time.monotonic)
        self._wake = threading.Condition()  # guards the batcher
        self._admitted = 0  # in this turn of the event loop, and no thread has been told yet
        self._stopping = False
        self._dead: str | None = None
        self._forward_since: float | None = None
        self._tokens_per_second = 0.0
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    # -- from the event loop ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads; call it from the event loop that will call `run`."""
        self._loop = asyncio.get_running_loop()
        for name, target in self._loops():
            thread = threading.Thread(target=self._supervised, args=(name, target), name=f"anyo-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def trouble(self) -> str | None:
        """Return why this engine answers nothing, or None; a stalled pass counts."""
        since = self._oldest_pass()
        if self._dead is not None:
            return self._dead
        if since is not None and time.monotonic() - since > self._stall_seconds:
            return f"{self.running_what} has been running for more than {self._stall_seconds:g} s"
        return None

    def load(self) -> tuple[int, int]:
        """Return the entries and the positions that wait for the device."""
        return self._batcher.depth, self._batcher.queued_tokens

    def running_seconds(self) -> float:
        """Return how long the pass in progress has been running, 0 without one."""
        since = self._oldest_pass()
        return 0.0 if since is None else time.monotonic() - since

    async def close(self, within: float) -> None:
        """Finish what is in flight for at most `within` seconds, fail the rest with NotReady, stop the threads."""
        end = time.monotonic() + within
        while self._dead is None and time.monotonic() < end and not self._idle():
            await asyncio.sleep(0.01)
        self._fail_waiters("the service is shutting down", "draining")
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        self._release()
        for thread in self._threads:
            await asyncio.to_thread(thread.join, 1.0)

    def _oldest_pass(self) -> float | None:
        """When the pass that has been running for the longest time began."""
        return self._forward_since

    # -- what an engine adds ---------------------------------------------------------------------------------

    def _loops(self) -> Iterable[tuple[str, Callable[[], None]]]:
        """Return the threads to start, by name."""
        raise NotImplementedError

    def _release(self) -> None:
        """Wake up threads that wait for anything else than the queue: they are to end."""

    def _idle(self) -> bool:
        return self._batcher.idle

    def _in_flight(self) -> list[Entry[P, PendingResult[R]]]:
        return list(self._batcher.entries())

    # -- admission and waiting -------------------------------------------------------------------------------

    async def _answer_to(
        self,
        admit: Callable[[Waiter[PendingResult[R]]], Entry[P, PendingResult[R]]],
        deadline: float,
        on_step: OnStep | None = None,
    ) -> R:
        """Admit and wait; cancelling takes the request out of the queue, or off what is being computed."""
        self._refuse_if_down()
        loop = asyncio.get_running_loop()
        ticket: PendingResult[R] = PendingResult(loop=loop)
        ticket.on_step = on_step
        waiter: Waiter[PendingResult[R]] = Waiter(ticket, deadline)
        entry = admit(waiter)
        timer = loop.call_at(loop.time() + deadline - time.monotonic(), _expire, ticket)
        try:
            return await ticket
        except ModelError as error:
            # Logged here and not where it happened: this task knows the request's id.
            if not REHEARSING.get():
                log.error("request failed", error=repr(error.__cause__), exc_info=error.__cause__)
            raise
        finally:
            timer.cancel()
            if not ticket.done() or ticket.cancelled() or ticket.exception() is not None:
                with self._wake:
                    self._batcher.leave(entry, waiter)

    def _queue(
        self, key: Hashable, length: int, work: P, waiter: Waiter[PendingResult[R]], group: Hashable = None
    ) -> Entry[P, PendingResult[R]]:
        """Put work into the queue; call it with `_wake` held. Raises Overloaded, TooLarge."""
        try:
            entry = self._batcher.admit(key, length, work, waiter, group)
        except QueueFull as full:
            self._metrics.rejected(self.full_reason).inc()
            raise self._overloaded(f"the queue is full ({full})", self._batcher.queued_tokens) from None
        except EntryTooLong as long:
            self._metrics.rejected("too_long").inc()
            raise TooLarge(
                f"this {self._what_is_long()} takes {long.length} positions, a batch may hold {long.limit}; "
                f"send a shorter history, or raise {self.batch_setting}",
                field="history",
            ) from None
        if not self._admitted:
            asyncio.get_running_loop().call_soon(self._tell)
        self._admitted += 1
        return entry

    def _tell(self) -> None:
        """Wake threads for the entries of this turn of the event loop, once all of them are there: every waking makes
        the loop wait for Python's lock, and a thread that wakes first finds one entry where a moment later are ten."""
        with self._wake:
            self._wake.notify(self._threads_for(self._admitted))
        self._admitted = 0

    def _threads_for(self, entries: int) -> int:
        """Return how many waiting threads to wake for so many new entries; called with `_wake` held."""
        return entries

    def _what_is_long(self) -> str:
        return "history"

    def _overloaded(self, message: str, queued: int) -> Overloaded:
        wait = math.ceil(queued / self._tokens_per_second) if self._tokens_per_second else 1
        return Overloaded(message, retry_after=max(1, min(LONGEST_RETRY_AFTER_S, wait)))

    def _refuse_if_down(self) -> None:
        if self._dead is not None:
            raise NotReady(self._dead, code="engine_dead")
        if self._stopping:
            raise NotReady("the service is shutting down", code="draining")

    # -- back on the event loop ------------------------------------------------------------------------------

    @staticmethod
    def _resolve(entry: Entry[P, PendingResult[R]], answer: R | AnyoError) -> None:
        for waiter in entry.waiters:
            if waiter.ticket.done():
                continue
            if isinstance(answer, AnyoError):
                waiter.ticket.set_exception(answer)
            else:
                waiter.ticket.set_result(answer)

    def _fail_waiters(self, reason: str, code: str) -> None:
        with self._wake:
            entries = self._in_flight()
        for entry in entries:
            self._resolve(entry, NotReady(reason, code=code))

    # -- supervision -----------------------------------------------------------------------------------------

    def _supervised(self, name: str, target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:
            log.critical("thread died", thread=name, error=repr(error), exc_info=error)
            self._dead = f"the {name} thread died; the log says why"  # what it died of is not for clients
            self._on_loop(self._fail_waiters, self._dead, "engine_dead")

    def _on_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None
        # A loop that is closed has no waiters left to tell.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)


def failed(error: Exception) -> AnyoError:
    """Return what a waiter is told whose own request made the model fail, or that could not be searched for."""
    if isinstance(error, SearchUnavailable):
        return IndexUnavailable(f"{error}; send the request again", retry_after=1)
    answer = ModelError("the model failed on this request; others are not affected")
    answer.__cause__ = error
    return answer
