"""One service process: its artifacts, its store, whether it is ready, and how it starts and ends."""

from __future__ import annotations

import asyncio
import gc
from functools import partial
from typing import TYPE_CHECKING

import structlog

from service.artifacts.loading import open_artifact as read_parts
from service.artifacts.trial import try_out
from service.caches import open_cache
from service.concurrency.searches import Searches
from service.errors import NotReady, StartError
from service.experiments.feedback import Feedback
from service.experiments.traffic import Traffic
from service.item_stores import open_item_store
from service.items.live import LiveItems
from service.keys import key_of_this_start
from service.lifecycle.lookup import AnyRecommender, Kind
from service.lifecycle.registry import OpenArtifact, Registry
from service.observability.metrics import ITEM_STATES, Metrics
from service.observability.tracing import open_tracing
from service.recommend.batches import Batches
from service.recommend.dense import DenseRecommender
from service.recommend.generative import GenerativeRecommender
from service.recommend.reranking import Stages
from service.settings import Settings, named_folder
from service.settings.store_kinds import shown
from service.stores import open_store
from service.stores.guarded import GuardedStore

if TYPE_CHECKING:
    from service.artifacts.qdrant import ServedEngine

log = structlog.get_logger(__name__)

LAG_INTERVAL_S = 0.25
GC_ALLOCATIONS = 20_000
BATCHES_AHEAD = 2  # full forward passes of batch entries in the engine: one runs while the next is put together


def _index_engine(settings: Settings, metrics: Metrics) -> ServedEngine | None:
    """Return the engine that finds items, where one is set; raises StartError."""
    if not settings.qdrant_url:
        return None
    try:
        from service.artifacts.qdrant import ServedEngine
    except ImportError as error:
        raise StartError(
            f"ANYO_QDRANT_URL is set, and its client is not installed ({error}); install the extra qdrant: "
            "pip install -e '.[cpu,qdrant]'"
        ) from None
    return ServedEngine(settings, metrics)


class Service:
    """Holds what the routes need. `start` (loads in the background), `drain` when told to end, `close` last.

    `open_artifact` can be replaced, so that a whole service can run on parts made in memory.
    """

    def __init__(self, settings: Settings, *, open_artifact: OpenArtifact | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics()
        # The key is for the console, its hash for the gate; the settings of this process name neither.
        self.start_key: str | None = None
        self.admin_keys = settings.admin_keys
        if (made := key_of_this_start(settings)) is not None:
            self.start_key, self.admin_keys = made[0], (f"start:{made[1]}",)
        self._inner_store = open_store(settings.store, settings, self.metrics)
        self.tracing = open_tracing(settings.otlp_endpoint)
        self.store = GuardedStore(
            self._inner_store,
            self.metrics,
            read_timeout_s=settings.store_timeout_ms / 1000,
            write_timeout_s=settings.deadline_ms / 1000,
        )
        self._cache = open_cache(settings, self.metrics)
        self.index_engine = _index_engine(settings, self.metrics) if open_artifact is None else None
        opener = open_artifact or partial(
            read_parts,
            precision=settings.precision,
            batch_positions=settings.max_batch_tokens,
            share_backbone=settings.share_backbone,
            precision_forced=settings.precision_forced,
            download=settings.allow_downloads,
            map_index=settings.map_index,
            open_index=None if self.index_engine is None else self.index_engine.open_index,
        )
        trial = try_out if open_artifact is None else None
        item_store = open_item_store(settings.item_store, settings, self.metrics) if settings.item_store else None
        self.items = LiveItems(settings, self.metrics, item_store)
        self.registry = Registry(settings, self.store, self.metrics, opener, self._cache, trial, self.items)
        self.feedback = Feedback(settings.feedback_entries, self.metrics, settings.feedback_log)
        self.traffic = Traffic(
            self.metrics, self.registry.recommenders, deadline_s=settings.deadline_ms / 1000, busy=self._busy
        )
        self.stages = Stages(self.metrics, settings.second_stage_ms / 1000)
        self.batches = Batches(BATCHES_AHEAD * settings.max_batch_requests, self.metrics)
        self.searches = Searches(settings.deadline_ms / 1000, self.metrics)
        self.loading: asyncio.Task[None] | None = None
        self._not_ready: str | None = "starting"
        self._tasks: list[asyncio.Task[None]] = []
        self._page: asyncio.Future[bytes] | None = None
        self._state_gauges()

    # -- asked by the routes ---------------------------------------------------------------------------------

    @property
    def recommenders(self) -> dict[str, AnyRecommender]:
        """Recommenders by the name of their artifact."""
        return self.registry.recommenders

    def loaded(self, name: str | None = None) -> AnyRecommender:
        """Return what a loaded artifact of either kind answers with (None: the default dense one, or without any the
        default generative one); raises NotReady, UnknownName."""
        self._refuse_before_the_start()
        return self.registry.get(name)

    def recommender(self, name: str | None) -> DenseRecommender:
        """Return what answers for a dense artifact (None: the default one); raises NotReady, UnknownName, Conflict."""
        self._refuse_before_the_start()
        return self.registry.dense(name)

    def generative(self, name: str | None, recipe: str | None, field: str = "artifact") -> GenerativeRecommender:
        """Return the recommender of a generative artifact: the one named, else the default one, else one of `recipe`;
        `field` is where the name stood. Raises NotReady, UnknownName, Conflict."""
        self._refuse_before_the_start()
        return self.registry.generative(name, recipe, field)

    def answering(self, name: str | None, user_id: str | None, request_id: str) -> DenseRecommender:
        """Return who answers a request: the artifact it names, else as the traffic is set; raises as `recommender`."""
        return self.recommender(self.traffic.choose(user_id, request_id) if name is None else name)

    def ranker(self, name: str | None, recipe: str | None, within: str = "") -> AnyRecommender:
        """Return the recommender of an artifact that scores candidates; see `ArtifactLookup.ranker`. Raises NotReady,
        UnknownName, Conflict."""
        self._refuse_before_the_start()
        return self.registry.ranker(name, recipe, within)

    def ranking(self, name: str | None, recipe: str | None, user_id: str | None, request_id: str) -> AnyRecommender:
        """Return who ranks candidates: the artifact or recipe that is named, else a dense one as the traffic is set.
        Raises as `ranker`."""
        if name is None and recipe is None and "dense" in self.registry.defaults:
            return self.answering(None, user_id, request_id)
        return self.ranker(name, recipe)

    def speaker(self) -> GenerativeRecommender | None:
        """Return who writes the sentence of an explanation; see `ArtifactLookup.speaker`."""
        return self.registry.speaker()

    def activate(self, name: str) -> str | None:
        """Let one artifact answer everything that names none, from the next request on; returns the one before.

        With a dense one it ends a split, so that going back to an artifact always means all of it. Raises NotReady,
        UnknownName.
        """
        kind = self.loaded(name).kind
        previous = self.registry.defaults.get(kind)
        self.registry.activate(name)
        if kind == "dense":
            self.traffic.set({}, None if self.traffic.shadow == name else self.traffic.shadow)
        return previous

    def _refuse_before_the_start(self) -> None:
        if not self.recommenders:
            raise NotReady(self._not_ready or "no artifact is loaded", retry_after=1)

    def refuse_during_the_start(self) -> None:
        """Raise NotReady until all artifacts named at the start are loaded: they come one after the other, and another
        load or unload between two of them would end the start."""
        self._refuse_before_the_start()
        if self.loading is not None and not self.loading.done():
            raise NotReady(self._not_ready or "starting", retry_after=1)

    def broken(self) -> str | None:
        """Return what only a restart can mend, or None: the answer of liveness."""
        for recommender in self.recommenders.values():
            if (reason := recommender.engine.trouble()) is not None:
                return reason
        return self.items.trouble()

    def not_ready(self) -> str | None:
        """Return why no traffic should come here now, or None: the answer of readiness."""
        return self._not_ready or self.broken() or self._search_trouble()

    def _search_trouble(self) -> str | None:
        """Return why items cannot be found now; whoever finds them looks again by itself."""
        indexes = (recommender.items.index for recommender in self.recommenders.values())
        return next((reason for index in indexes if index is not None and (reason := index.trouble())), None)

    async def metrics_page(self) -> bytes:
        """Return the page of metrics; who asks while one is being written gets that one.

        Thousands of lines take milliseconds to write: not on the event loop, and not once for everyone who asks.
        """
        if self._page is None or self._page.done():
            self._page = asyncio.ensure_future(asyncio.to_thread(self.metrics.page))
        return await asyncio.shield(self._page)

    # -- life ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the store and begin to load; the port can answer probes meanwhile. Await `loading` for its end."""
        try:
            await self._inner_store.open()
        except Exception as error:
            raise StartError(f"the store {shown(self.settings.store)} cannot be opened: {error}") from error
        try:
            await self.items.open()
        except Exception as error:
            raise StartError(f"the item store {shown(self.settings.item_store)} cannot be opened: {error}") from error
        if self._cache is not None:
            await self._cache.open()
        self.feedback.open()
        self._tasks.append(asyncio.create_task(self._watch_lag()))
        self.loading = asyncio.create_task(self._load())

    def begin_draining(self) -> None:
        """Turn readiness red and go on answering."""
        self._not_ready = "the service is shutting down"

    async def drain(self, within: float) -> None:
        """Answer what is in flight for at most `within` seconds, then fail the rest."""
        self.begin_draining()
        await self.registry.close(within)

    async def close(self) -> None:
        """Stop everything that is left; `drain` comes first where there are waiters."""
        self.begin_draining()
        tasks = [*self._tasks, *([self.loading] if self.loading else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.traffic.close()
        await self.drain(0)
        self.searches.close()
        await asyncio.to_thread(self.feedback.close)
        await self._inner_store.close()
        await self.items.close()
        if self._cache is not None:
            await self._cache.close()
        if self.index_engine is not None:
            await asyncio.to_thread(self.index_engine.close)
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)

    async def _load(self) -> None:
        await self.items.read_all(self._note_step)
        self.items.start()
        for given in self.settings.artifacts:
            name, folder = named_folder(given)
            try:
                await self.registry.load_at_start(folder, self._note_step, name)
            except NotReady:
                return  # told to end meanwhile
            self.feedback.announce(next(reversed(self.recommenders)))
        # Between collections; the default of a few hundred allocations costs each request some percent.
        gc.set_threshold(GC_ALLOCATIONS, *gc.get_threshold()[1:])
        self._not_ready = None

    def _note_step(self, step: str) -> None:
        self._not_ready = step

    # -- gauges ----------------------------------------------------------------------------------------------

    def _state_gauges(self) -> None:
        metrics, settings = self.metrics, self.settings
        metrics.ready.set_function(lambda: self.not_ready() is None)
        metrics.forward_running_seconds.set_function(lambda: max(self._running_seconds(), default=0.0))
        metrics.watch_device(settings.device)
        metrics.queue_depth.set_function(lambda: sum(load[0] for load in self._loads("dense")))
        metrics.queue_tokens.set_function(lambda: sum(load[1] for load in self._loads("dense")))
        metrics.title_queue_tokens.set_function(
            lambda: sum(each.histories.titles.positions for each in list(self.recommenders.values()))
        )
        metrics.generative_queue_depth.set_function(lambda: sum(load[0] for load in self._loads("generative")))
        metrics.generative_queue_tokens.set_function(lambda: sum(load[1] for load in self._loads("generative")))
        metrics.generative_queue_depth_limit.set(settings.generative_queued_requests)
        metrics.generative_queue_tokens_limit.set(settings.generative_queued_tokens)
        metrics.queue_tokens_limit.set(settings.max_queued_tokens)
        metrics.batch_tokens_limit.set(settings.max_batch_tokens)
        metrics.batch_requests_limit.set(settings.max_batch_requests)
        metrics.artifact_bytes.set_function(lambda: self.registry.bytes())
        for state in ITEM_STATES:
            metrics.changed_items(state).set_function(partial(self.items.count, state))
        metrics.item_delta.set_function(lambda: self.items.delta_size)
        metrics.item_lag_seconds.set_function(lambda: self.items.lag_s)
        metrics.artifact_bytes_limit.set(settings.max_artifact_bytes)

    def _busy(self) -> bool:
        """Whether a whole batch waits already: no time for background work."""
        return sum(load[0] for load in self._loads("dense")) >= self.settings.max_batch_requests

    def _loads(self, kind: Kind) -> list[tuple[int, int]]:
        loaded = list(self.recommenders.values())
        return [recommender.engine.load() for recommender in loaded if recommender.kind == kind]

    def _running_seconds(self) -> list[float]:
        return [recommender.engine.running_seconds() for recommender in list(self.recommenders.values())]

    async def _watch_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(LAG_INTERVAL_S)
            self.metrics.event_loop_lag.observe(max(0.0, loop.time() - before - LAG_INTERVAL_S))
