"""The engine: from prepared work to found items, in batches, on threads of its own.

Three steps surround the device so that it never waits for Python:

    event loop     admit → queue            … resolve the waiters
    device thread          take a batch → forward
    search thread                          search → hand back

While one batch is in its forward pass, the next requests are being prepared on the event loop and the batch
before it is searched. A device thread takes its batch at the last moment, so that everything that arrived
during a forward pass can be in the next. There may be several device threads (lanes): on a processor two narrow
passes beside each other do more than one wide one, so what came at once is shared among those that wait, and each is
told whether it runs alone and may be wide. Where passes take less time than threads take from each other by waking up,
one lane does all of them while the others sleep. Work whose vector is known already goes to the search thread alone.

A failing batch is computed again row by row, so that only the request at fault sees the error. If a thread
itself dies, every waiter gets an error, the engine refuses further work and `trouble()` tells liveness and
readiness.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from service.engine.admission import DrainRate
from service.engine.base import PendingResult, QueuedEngine, failed, smoothed
from service.engine.batcher import Batch, Entry, Limits, Waiter
from service.engine.device_lock import DeviceLock
from service.engine.work import DecodeSession, Encode, Found, Work, one_by_one_on_failure
from service.errors import AnyoError
from service.observability.metrics import Metrics

# Batches on the way to their answers beside those that every lane computes: enough to overlap, few enough to push back.
SEARCH_BACKLOG = 1
# Passes below this mean are not worth a second thread: it would cost the event loop more of Python's lock.
BRIEF_S = 0.002
# A pass that has run for so long is none of them; twice the time for which a thread may hold Python's lock.
NOT_BRIEF_S = 0.010
# Requests with a known vector that may wait for the search thread, in full batches.
CACHED_BACKLOG_BATCHES = 16

WorkEntry = Entry[Work, PendingResult[Found]]


@dataclass(slots=True, eq=False)
class _Computed:
    """Entries on their way to the search thread: a vector or an error each, and when the forward pass ran."""

    entries: Sequence[WorkEntry]
    vectors: list[np.ndarray | Exception]
    started: float
    finished: float
    batch: Batch[Work, PendingResult[Found]] | None  # None: the vector came from the cache


def _closed(*_: Any) -> Any:
    raise RuntimeError("the engine is closed")


class Engine(QueuedEngine[Work, Found]):
    """Runs `encode` and `search` for many requests at once; `start`, then `run`, then `close`."""

    def __init__(
        self,
        encode: Encode,
        search: DecodeSession,
        limits: Limits,
        metrics: Metrics,
        *,
        stall_seconds: float = 60.0,
        queue_seconds: float = 0.0,
        rate: float = 0.0,
        device: DeviceLock | None = None,
        lanes: int = 1,
        before_pass: Callable[[bool], None] = lambda alone: None,
    ) -> None:
        """`lanes` passes may run at the same time; `before_pass` is called on the thread of each, with whether it has
        the device to itself and nothing else waits. `rate` is what `rate` of an earlier engine on the same parts said:
        nothing else is known before the first queue, and a flood fills it in less time than that takes to shrink.
        `device` is shared with other engines."""
        super().__init__(limits, metrics, stall_seconds)
        self._encode = encode
        self._search = search
        self._device = device or DeviceLock()
        self._inbox: queue.SimpleQueue[_Computed | None] = queue.SimpleQueue()
        self._lanes, self._before_pass = lanes, before_pass
        self._passes: dict[int, float] = {}  # thread of a lane → since when it computes
        self._backlog = threading.Semaphore(SEARCH_BACKLOG + lanes)
        self._cached: set[WorkEntry] = set()  # on their way to the search thread, vector known
        self._lanes_waiting = 0  # for work; one that has been told of some counts until it wakes
        self._called = False  # a lane has been told, and is not awake yet
        self._looking = False  # a timer runs that looks whether it went on
        self._pass_seconds = 0.0
        self._taken = 0  # batches that have left the queue and do not hold the device yet
        self._drain = DrainRate(queue_seconds, rate)

    # -- from the event loop ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads; call it from the event loop that will call `run`."""
        self._device.watch(self._waiting, self._requests_waiting)
        super().start()

    async def run(self, work: Work, key: Hashable, deadline: float) -> Found:
        """Compute one request; `key` names identical work, `deadline` is a time of `time.monotonic`.

        Raises TooLarge, Overloaded, DeadlineExceeded, ModelError, NotReady. Cancelling it takes the request
        out of the queue.
        """
        if work.vector_D is None:
            return await self._answer_to(lambda waiter: self._admit(work, key, waiter), deadline)
        return await self._answer_to(lambda waiter: self._admit_cached(work, waiter), deadline)

    def rate(self) -> float:
        """Return the positions a second at which a queue has been seen to shrink, 0 where there was none."""
        return self._drain.per_second()

    async def close(self, within: float) -> None:
        """Finish what is in flight for at most `within` seconds, fail the rest with NotReady, stop the threads."""
        await super().close(within)
        self._device.unwatch(self._waiting)
        # The recommender holds this engine, and these hold the recommender: without the circle, counting
        # references gives the model's memory back at once.
        self._encode = self._search = self._before_pass = _closed

    def _loops(self) -> Iterable[tuple[str, Callable[[], None]]]:
        return *[("device", self._device_loop)] * self._lanes, ("search", self._search_loop)

    def _release(self) -> None:
        self._backlog.release(self._lanes)
        self._inbox.put(None)

    def _oldest_pass(self) -> float | None:
        return min(tuple(self._passes.values()), default=None)

    def _waiting(self) -> int:
        # In this order: a batch is marked as taken before its entries leave the queue.
        return self._batcher.depth + self._taken

    def _requests_waiting(self) -> int:
        with self._wake:
            return sum(not entry.running and not entry.work.further for entry in self._batcher.entries())

    def _admit(self, work: Work, key: Hashable, waiter: Waiter[PendingResult[Found]]) -> WorkEntry:
        assert work.prompt is not None
        with self._wake:
            self._refuse_if_slow()
            return self._queue(key, work.positions or work.prompt.length, work, waiter)

    def _refuse_if_slow(self) -> None:
        """Refuse what would wait too long; never below one full batch."""
        (waiting, queued), limits = self.load(), self._batcher.limits
        if waiting < limits.max_batch_requests and queued < limits.max_batch_tokens:
            return
        if (wait := self._drain.too_long_a_wait(queued)) is not None:
            self._metrics.rejected("queue_slow").inc()
            raise self._overloaded(f"the {queued} positions that wait take about {wait:.1f} s", queued)

    def _admit_cached(self, work: Work, waiter: Waiter[PendingResult[Found]]) -> WorkEntry:
        limits = self._batcher.limits
        if len(self._cached) >= CACHED_BACKLOG_BATCHES * limits.max_batch_requests:
            self._metrics.rejected("search_full").inc()
            raise self._overloaded(f"{len(self._cached)} requests wait for a search", 0)
        now = time.monotonic()
        entry: WorkEntry = Entry(None, 1, work, now, [waiter], running=True)
        assert work.vector_D is not None
        self._cached.add(entry)
        self._inbox.put(_Computed([entry], [work.vector_D], now, now, None))
        return entry

    def _idle(self) -> bool:
        return super()._idle() and not self._cached

    def _in_flight(self) -> list[WorkEntry]:
        return [*super()._in_flight(), *self._cached]

    @property
    def _brief(self) -> bool:
        """Whether passes are known to be so short that one lane of several is enough."""
        return self._lanes > 1 and 0.0 < self._pass_seconds < BRIEF_S

    def _threads_for(self, entries: int) -> int:
        if self._brief:
            self._look_again_soon()
            # A lane that is awake looks into the queue before it sleeps.
            entries = 0 if self._called or self._lanes_waiting < self._lanes else 1
        self._called = self._called or min(entries, self._lanes_waiting) > 0
        return entries

    def _look_again_soon(self) -> None:
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_later(NOT_BRIEF_S, self._look_again)

    def _look_again(self) -> None:
        """Wake the others where the lane that was to do all is in a pass that is not brief after all."""
        with self._wake:
            self._looking = False
            if self._stopping or not (depth := self._batcher.depth):
                return
            if self.running_seconds() < NOT_BRIEF_S:
                self._look_again_soon()
            else:
                self._wake.notify(depth)

    # -- device thread ---------------------------------------------------------------------------------------

    def _device_loop(self) -> None:
        lane = threading.get_ident()
        while (batch := self._take()) is not None:
            with self._device.dense():
                with self._wake:
                    self._taken -= 1
                    self._passes[lane] = started = time.monotonic()
                    alone = len(self._passes) == 1 and not self._batcher.depth
                self._before_pass(alone)
                vectors = one_by_one_on_failure(self._forward, [entry.work.prompt for entry in batch.entries])
            del self._passes[lane]
            finished = time.monotonic()
            self._note(batch, finished - started)
            self._inbox.put(_Computed(batch.entries, vectors, started, finished, batch))

    def _take(self) -> Batch[Work, PendingResult[Found]] | None:
        """Wait for work and take a batch of it; None means stop. Late, so that the batch is as full as can be."""
        self._backlog.acquire()
        with self._wake:
            while not self._stopping:
                self._taken += 1
                batch = self._batcher.next_batch(1 if self._brief else 1 + self._lanes_waiting)
                if batch is not None:
                    self._drain.note_taken(time.monotonic(), batch.tokens, others_wait=self._batcher.depth > 0)
                    if self._batcher.depth and not self._brief:
                        self._wake.notify()
                    return batch
                self._taken -= 1
                self._lanes_waiting += 1
                self._wake.wait()
                self._lanes_waiting -= 1
                self._called = False
        return None

    def _forward(self, prompts: Sequence[Any]) -> list[np.ndarray]:
        """Return user_BD; a wrong shape or a value that is not finite is an error, not somebody's answer."""
        self._passes[threading.get_ident()] = time.monotonic()
        user_BD = np.asarray(self._encode(prompts), dtype=np.float32)
        if user_BD.ndim != 2 or len(user_BD) != len(prompts):
            raise RuntimeError(f"the encoder returned shape {user_BD.shape} for {len(prompts)} prompts")
        if not np.isfinite(user_BD).all():
            raise RuntimeError("the encoder returned a user vector that is not finite")
        return list(user_BD)

    def _note(self, batch: Batch[Work, PendingResult[Found]], seconds: float) -> None:
        self._metrics.batch_requests.observe(len(batch.entries))
        self._metrics.batch_tokens.observe(batch.computed_tokens)
        self._metrics.batch_padding_ratio.observe(batch.padding)
        self._pass_seconds = smoothed(self._pass_seconds, seconds)
        rate = self._lanes * batch.tokens / max(seconds, 1e-6)
        self._tokens_per_second = smoothed(self._tokens_per_second, rate)

    # -- search thread ---------------------------------------------------------------------------------------

    def _search_loop(self) -> None:
        while (computed := self._inbox.get()) is not None:
            started = time.monotonic()
            results = self._search_all(computed)
            finished = time.monotonic()
            if computed.batch is not None:
                self._backlog.release()
            self._on_loop(self._deliver, computed, results, started, finished)

    def _search_all(self, computed: _Computed) -> list[Any]:
        """Return (rows_K, scores_K), an exception, or None (cancelled) for each entry."""
        results: list[Any] = list(computed.vectors)
        if computed.batch is None and not computed.entries[0].wanted(time.monotonic()):
            return [None]
        places = [place for place, result in enumerate(results) if not isinstance(result, Exception)]

        def search(some: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
            return self._search(np.stack([results[i] for i in some]), [computed.entries[i].work for i in some])

        if places:
            for place, found in zip(places, one_by_one_on_failure(search, places), strict=True):
                results[place] = found
        return results

    # -- back on the event loop ------------------------------------------------------------------------------

    def _deliver(self, computed: _Computed, results: list[Any], search_started: float, finished: float) -> None:
        """Resolve the waiters; identical requests join an entry up to this very moment."""
        if computed.batch is not None:
            with self._wake:
                self._batcher.done(computed.batch)
        else:
            self._cached.difference_update(computed.entries)
        for entry, vector, result in zip(computed.entries, computed.vectors, results, strict=True):
            if result is None:
                continue
            answer: Found | AnyoError
            if isinstance(result, Exception):
                answer = failed(result)
            else:
                taken = search_started if computed.batch is None else computed.started
                seconds = {"queue": max(0.0, taken - entry.arrived)}
                if computed.batch is not None:
                    seconds["forward"] = computed.finished - computed.started
                seconds["search"] = finished - search_started
                rows_K, scores_K = result
                answer = Found(rows_K, scores_K, cast(np.ndarray, vector), seconds)
            self._resolve(entry, answer)
