"""One service process: its artifacts, its store, whether it is ready, and how it starts and ends."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from service.cache_shared import open_cache
from service.errors import NotReady, StartError, UnknownName
from service.loader import rehearse
from service.metrics import Metrics
from service.parts import Parts, open_parts
from service.recommender import Recommender
from service.settings import Settings, without_password
from service.store import GuardedStore, open_store
from service.tracing import open_tracing

log = structlog.get_logger(__name__)

LAG_INTERVAL_S = 0.25
GC_ALLOCATIONS = 20_000  # between collections; the default of a few hundred costs each request some percent
OpenParts = Callable[[Path, str], Parts]


class Service:
    """Holds what the routes need. `start` (loads in the background), `drain` when told to end, `close` last.

    `open_parts` can be replaced, so that a whole service can run on parts made in memory.
    """

    def __init__(self, settings: Settings, *, open_parts: OpenParts = open_parts) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self._inner_store = open_store(settings.store, settings, self.metrics)
        self.tracing = open_tracing(settings.otlp_endpoint)
        self.store = GuardedStore(
            self._inner_store,
            self.metrics,
            read_timeout_s=settings.store_timeout_ms / 1000,
            write_timeout_s=settings.deadline_ms / 1000,
        )
        self._cache = open_cache(settings, self.metrics)
        self.recommenders: dict[str, Recommender] = {}
        self.loading: asyncio.Task[None] | None = None
        self._open_parts = open_parts
        self._not_ready: str | None = "starting"
        self._tasks: list[asyncio.Task[None]] = []
        self._state_gauges()

    # -- asked by the routes ---------------------------------------------------------------------------------

    def recommender(self, name: str | None) -> Recommender:
        """Return the recommender of a loaded artifact (None: the default one); raises NotReady, UnknownName."""
        if not self.recommenders:
            raise NotReady(self._not_ready or "no artifact is loaded", retry_after=1)
        if name is None:
            return next(iter(self.recommenders.values()))
        try:
            return self.recommenders[name]
        except KeyError:
            raise UnknownName(
                f"artifact {name!r} is not loaded; loaded are {', '.join(self.recommenders)}",
                field="artifact",
                code="unknown_artifact",
            ) from None

    def broken(self) -> str | None:
        """Return what only a restart can mend, or None: the answer of liveness."""
        for recommender in self.recommenders.values():
            if (reason := recommender.engine.trouble()) is not None:
                return reason
        return None

    def not_ready(self) -> str | None:
        """Return why no traffic should come here now, or None: the answer of readiness."""
        return self._not_ready or self.broken()

    # -- life ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the store and begin to load; the port can answer probes meanwhile. Await `loading` for its end."""
        try:
            self.metrics.store_up.set(1)  # a Redis that is still away sets it to 0
            await self._inner_store.open()
        except Exception as error:
            raise StartError(
                f"the store {without_password(self.settings.store)!r} cannot be opened: {error}"
            ) from error
        if self._cache is not None:
            await self._cache.open()
        self._tasks.append(asyncio.create_task(self._watch_lag()))
        self.loading = asyncio.create_task(self._load())

    def begin_draining(self) -> None:
        """Turn readiness red and go on answering."""
        self._not_ready = "the service is shutting down"

    async def drain(self, within: float) -> None:
        """Answer what is in flight for at most `within` seconds, then fail the rest."""
        self.begin_draining()
        await asyncio.gather(*(recommender.close(within) for recommender in self.recommenders.values()))

    async def close(self) -> None:
        """Stop everything that is left; `drain` comes first where there are waiters."""
        self.begin_draining()
        tasks = [*self._tasks, *([self.loading] if self.loading else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.drain(0)
        await self._inner_store.close()
        if self._cache is not None:
            await self._cache.close()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)

    async def _load(self) -> None:
        for folder in self.settings.artifacts:
            self._not_ready = f"loading {folder.name}"
            started = time.monotonic()
            parts = await asyncio.to_thread(self._open_parts, folder, self.settings.device)
            if parts.name in self.recommenders:
                raise StartError(f"two of the artifacts are called {parts.name!r}; names must differ")
            self._not_ready = f"checking and warming up {parts.name}"
            await rehearse(parts, self.store, self.settings)
            shared = self._cache.of(parts) if self._cache is not None else None
            recommender = Recommender(parts, self.store, self.settings, self.metrics, shared)
            recommender.start()
            self._add(recommender)
            log.info("artifact ready", name=parts.name, version=parts.version, recipe=parts.recipe,
                     items=len(parts.catalog), seconds=round(time.monotonic() - started, 2))  # fmt: skip
        # What was loaded lives as long as the process: the collector need not walk it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_ALLOCATIONS, *gc.get_threshold()[1:])
        self._not_ready = None

    def _add(self, recommender: Recommender) -> None:
        parts = recommender.parts
        if not self.recommenders:
            self.metrics.index_items.set(parts.index.size)
        self.recommenders[parts.name] = recommender
        self.metrics.artifact_info(parts.name, parts.version, parts.recipe).set(1)

    # -- gauges ----------------------------------------------------------------------------------------------

    def _state_gauges(self) -> None:
        metrics, settings = self.metrics, self.settings
        metrics.ready.set_function(lambda: self.not_ready() is None)
        metrics.forward_running_seconds.set_function(lambda: max(self._running_seconds(), default=0.0))
        metrics.watch_device(settings.device)
        metrics.queue_depth.set_function(lambda: sum(load[0] for load in self._loads()))
        metrics.queue_tokens.set_function(lambda: sum(load[1] for load in self._loads()))
        metrics.queue_tokens_limit.set(settings.max_queued_tokens)
        metrics.batch_tokens_limit.set(settings.max_batch_tokens)
        metrics.batch_requests_limit.set(settings.max_batch_requests)

    def _loads(self) -> list[tuple[int, int]]:
        return [recommender.engine.load() for recommender in list(self.recommenders.values())]

    def _running_seconds(self) -> list[float]:
        return [recommender.engine.running_seconds() for recommender in list(self.recommenders.values())]

    async def _watch_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(LAG_INTERVAL_S)
            self.metrics.event_loop_lag.observe(max(0.0, loop.time() - before - LAG_INTERVAL_S))
