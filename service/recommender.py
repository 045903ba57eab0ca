"""From a request to recommended rows: history, cache, model, search, popular items where nothing is known.

Knows neither HTTP nor JSON. One recommender serves one artifact.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, cast

import numpy as np
import structlog
from numpy.typing import NDArray

from modeling.prompt import FreeItem
from modeling.user_encoder import CannotReadText
from service.batcher import Limits
from service.cache import LruCache
from service.cache_shared import ArtifactCache, Known, Question
from service.engine import Engine
from service.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidInput,
    NothingUsable,
    Overloaded,
    StoreUnavailable,
)
from service.metrics import Metrics
from service.parts import Parts
from service.schemas import FreeTitle, RecommendRequest
from service.settings import Settings
from service.store import GuardedStore
from service.work import Found, Hits, Work

log = structlog.get_logger(__name__)

FILTERS_KEPT = 256  # category filters whose rows are kept
TITLE_READINGS_WAITING = 64  # requests that may wait for their free titles to be read
IDS_SHOWN = 5  # in messages

Source = Literal["model", "cache", "popular"]
NO_ROWS = np.empty(0, np.int64)
NOTHING_KNOWN = Known()


@dataclass(slots=True)
class History:
    """A history as rows and free titles, oldest first; `seen` are all its rows, also those too old to be read."""

    parts: list[int | str]
    titles: list[str]
    seen: list[int]
    ignored: list[str]


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Catalog rows and scores, best first, where they came from, and seconds by stage."""

    rows: Sequence[int]
    scores: Sequence[float]
    source: Source
    ignored: list[str]
    degraded: list[str]
    seconds: dict[str, float] = field(default_factory=dict)
    vector_D: NDArray[np.float32] | None = None


class Recommender:
    """Answers requests with one artifact; `start` before the first, `close` after the last."""

    def __init__(
        self,
        parts: Parts,
        store: GuardedStore,
        settings: Settings,
        metrics: Metrics,
        shared: ArtifactCache | None = None,
        rate: float = 0.0,
    ) -> None:
        self.parts = parts
        self._store = store
        self._shared = shared
        self._metrics = metrics
        self._vectors: LruCache[NDArray[np.float32]] = LruCache(settings.user_cache_entries)
        self._titles: LruCache[FreeItem] = LruCache(settings.title_cache_entries)
        self._allowed: LruCache[NDArray[np.int64]] = LruCache(FILTERS_KEPT)
        self._popular: LruCache[NDArray[np.int64]] = LruCache(FILTERS_KEPT)
        self._title_thread = ThreadPoolExecutor(1, thread_name_prefix="anyo-titles")
        self._titles_waiting = 0
        self._in_flight = 0
        self._known_categories = frozenset(parts.catalog.known_categories)
        limits = Limits(
            settings.max_batch_tokens,
            settings.max_batch_requests,
            settings.max_queued_tokens,
            settings.max_batch_padding,
        )
        self.engine = Engine(
            parts.encoder.encode,
            self.search,
            limits,
            metrics,
            stall_seconds=settings.stall_seconds,
            queue_seconds=settings.max_queue_seconds,
            rate=rate,
        )

    def start(self) -> None:
        """Start the engine on the running event loop."""
        self.engine.start()

    async def close(self, within: float) -> None:
        """Answer what is in flight for at most `within` seconds, fail the rest, and stop the threads."""
        end = time.monotonic() + within
        # A request may still be reading its history and come to the engine in a moment.
        while self._in_flight and self.engine.trouble() is None and (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(0.01, left))
        await self.engine.close(max(0.0, end - time.monotonic()))
        self._title_thread.shutdown(wait=False, cancel_futures=True)

    async def recommend(self, ask: RecommendRequest, deadline: float) -> Recommendation:
        """Answer one request before `deadline` (a time of `time.monotonic`).

        Raises InvalidInput, NothingUsable, Conflict, TooLarge, Overloaded, ModelError, NotReady,
        DeadlineExceeded.
        """
        self._in_flight += 1
        try:
            return await self._recommend(ask, deadline)
        finally:
            self._in_flight -= 1

    async def _recommend(self, ask: RecommendRequest, deadline: float) -> Recommendation:
        self._check_categories(ask.categories)
        started = time.monotonic()
        stored, degraded = await self._stored(ask.user_id)
        seconds = {"history": time.monotonic() - started} if ask.user_id is not None else {}
        history = self._resolve(stored, ask.history)
        if not history.parts:
            if ask.user_id is None:
                raise self._nothing_usable(ask)
            return await self._popular_items(ask, history, degraded, seconds)
        started = time.monotonic()
        work, key, vector_key, question, known = await self._assemble(ask, history, deadline)
        seconds["assemble"] = time.monotonic() - started
        if known.result is not None:
            return Recommendation(*known.result, "cache", history.ignored, degraded, seconds)
        found = await self.engine.run(work, key, deadline)
        if work.vector_D is None:
            # A copy: the vector is a row of its batch and would keep the whole batch in memory.
            self._vectors.put(vector_key, found.vector_D.copy())
        answer = self._answer(found, history, degraded, seconds, "model" if work.vector_D is None else "cache")
        if self._shared is not None and question is not None:
            computed_D = found.vector_D if work.vector_D is None else None
            self._shared.remember(question, computed_D, answer.rows, answer.scores)
        return answer

    def search(self, user_BD: NDArray[np.float32], works: Sequence[Work]) -> list[Hits]:
        """Search the index for several requests; one call for each category filter among them. Blocks."""
        hits: list[Hits] = [(NO_ROWS, np.empty(0, np.float32))] * len(works)
        groups: dict[int, list[int]] = {}
        for place, work in enumerate(works):
            groups.setdefault(id(work.allowed), []).append(place)
        for places in groups.values():
            k = max(works[place].k for place in places)
            exclude = [works[place].exclude for place in places]
            scores_BK, rows_BK = self.parts.index.search(
                user_BD[places], k, exclude=exclude, allowed=works[places[0]].allowed
            )
            for place, scores_K, rows_K in zip(places, scores_BK, rows_BK, strict=True):
                eligible = min(works[place].k, int(np.count_nonzero(rows_K >= 0)))
                hits[place] = rows_K[:eligible], scores_K[:eligible]
        return hits

    # -- the history -----------------------------------------------------------------------------------------

    async def _stored(self, user_id: str | None) -> tuple[list[str], list[str]]:
        if user_id is None:
            return [], []
        try:
            return [event.item_id for event in await self._store.history(user_id)], []
        except (StoreUnavailable, Overloaded) as error:
            # A recommendation without the stored part is worth more than none; the answer says so.
            log.warning("answering without the store", error=error.message)
            return [], ["store"]

    def _resolve(self, stored: Sequence[str], given: Sequence[str | FreeTitle]) -> History:
        parts: list[int | str] = []
        titles: dict[str, None] = {}
        seen: list[int] = []
        ignored: dict[str, None] = {}
        row_of = self.parts.catalog.row
        for item in (*stored, *given):
            if isinstance(item, FreeTitle):
                parts.append(item.title)
                titles[item.title] = None
                continue
            row = row_of(item)
            if row is None:
                ignored[item] = None
            else:
                parts.append(row)
                seen.append(row)
        return History(parts[-self.parts.encoder.history_limit :], list(titles), seen, list(ignored))

    def _nothing_usable(self, ask: RecommendRequest) -> NothingUsable:
        if not ask.history:
            return NothingUsable(
                "neither history nor user_id is given; send at least one item id of the catalog, or a "
                "user_id (an unknown user gets popular items)",
                field="history",
            )
        shown = ", ".join(repr(item) for item in ask.history[:IDS_SHOWN])
        more = f" and {len(ask.history) - IDS_SHOWN} more" if len(ask.history) > IDS_SHOWN else ""
        return NothingUsable(
            f"none of the items in history is in the catalog of {len(self.parts.catalog)} items: "
            f"{shown}{more}; GET /items lists the ids there are, and a user_id would be answered with "
            "popular items",
            field="history",
        )

    # -- putting a request together --------------------------------------------------------------------------

    async def _assemble(
        self, ask: RecommendRequest, history: History, deadline: float
    ) -> tuple[Work, Hashable, Hashable, Question | None, Known]:
        """Return the work, a key that identical requests share, the key of the user vector, and what replicas share."""
        exclude = self._excluded(ask, history)
        categories = tuple(sorted(set(ask.categories)))
        k = min(ask.k, len(self.parts.catalog))
        vector_key = tuple(history.parts)
        vector_D = self._vectors.get(vector_key)
        if self._vectors.capacity:
            self._metrics.cache_requests("user_vector", "miss" if vector_D is None else "hit").inc()
        question, known = None, NOTHING_KNOWN
        if self._shared is not None and (vector_D is None or self._shared.shares_answers):
            question = self._shared.question(history.parts, k, exclude, categories)
            known = await self._shared.look_up(question, want_vector=vector_D is None)
            if known.vector_D is not None:
                vector_D = known.vector_D
                self._vectors.put(vector_key, vector_D)
        prompt = None
        if vector_D is None and known.result is None:
            prompt = self.parts.encoder.prepare(await self._readable(history, deadline))
        work = Work(prompt, k, exclude, await self._allowed_rows(categories), vector_D)
        return work, (vector_key, k, exclude.tobytes(), categories), vector_key, question, known

    def _excluded(self, ask: RecommendRequest, history: History) -> NDArray[np.int64]:
        rows = [row for row in map(self.parts.catalog.row, ask.exclude) if row is not None]
        if ask.exclude_seen:
            rows += history.seen
        return np.array(sorted(set(rows)), np.int64) if rows else NO_ROWS

    async def _readable(self, history: History, deadline: float) -> Sequence[int | FreeItem]:
        """Return the history as the encoder takes it, its free titles read."""
        if not history.titles:
            return cast(list[int], history.parts)
        titles = [part for part in dict.fromkeys(history.parts) if isinstance(part, str)]
        if "text" not in self.parts.reads:
            raise self._cannot_read_text(history.titles[0])
        read = {title: item for title in titles if (item := self._titles.get(title)) is not None}
        missing = [title for title in titles if title not in read]
        if missing:
            for item in await self._read_on_thread(missing, deadline):
                read[item.title] = item
                self._titles.put(item.title, item)
        if self._titles.capacity:
            self._metrics.cache_requests("title", "miss" if missing else "hit").inc()
        return [read[part] if isinstance(part, str) else part for part in history.parts]

    async def _read_on_thread(self, titles: list[str], deadline: float) -> list[FreeItem]:
        if self._titles_waiting >= TITLE_READINGS_WAITING:
            self._metrics.rejected("titles_full").inc()
            raise Overloaded(f"{self._titles_waiting} requests wait for their titles to be read", retry_after=1)
        self._titles_waiting += 1
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await loop.run_in_executor(self._title_thread, self.parts.encoder.read_titles, titles)
        except TimeoutError:
            raise DeadlineExceeded("the titles in history were not read within the deadline", field="history") from None
        except CannotReadText:
            raise self._cannot_read_text(titles[0]) from None
        finally:
            self._titles_waiting -= 1

    def _cannot_read_text(self, title: str) -> Conflict:
        return Conflict(
            f"history holds the free title {title[:80]!r}, and artifact {self.parts.name!r} (recipe "
            f"{self.parts.recipe!r}) reads {' and '.join(self.parts.reads)} only; send item ids of the "
            "catalog (GET /items finds them by title), or serve an artifact whose GET /artifacts row reads "
            "text",
            field="history",
            code="cannot_read_text",
        )

    # -- categories ------------------------------------------------------------------------------------------

    def _check_categories(self, categories: Sequence[str]) -> None:
        for name in categories:
            if name not in self._known_categories:
                known = sorted(self._known_categories)
                listed = ", ".join(repr(other) for other in known[:20]) + (", …" if len(known) > 20 else "")
                raise InvalidInput(
                    f"category {name!r} is not in the catalog; "
                    + (f"known are {listed} ({len(known)} in all)" if known else "its items have no categories"),
                    field="categories",
                    code="unknown_category",
                )

    async def _allowed_rows(self, categories: tuple[str, ...]) -> NDArray[np.int64] | None:
        if not categories:
            return None
        rows = self._allowed.get(categories)
        if rows is None:
            # The union may be most of a large catalog: not on the event loop.
            rows = await asyncio.to_thread(self.parts.catalog.in_categories, categories)
            self._allowed.put(categories, rows)
        return rows

    # -- answers ---------------------------------------------------------------------------------------------

    def _answer(
        self, found: Found, history: History, degraded: list[str], seconds: dict[str, float], source: Source
    ) -> Recommendation:
        return Recommendation(
            found.rows_K.tolist(),
            found.scores_K.tolist(),
            source,
            history.ignored,
            degraded,
            seconds | found.seconds,
            found.vector_D,
        )

    async def _popular_items(
        self, ask: RecommendRequest, history: History, degraded: list[str], seconds: dict[str, float]
    ) -> Recommendation:
        categories = tuple(sorted(set(ask.categories)))
        order = self._popular.get(categories)
        if order is None:
            order = await asyncio.to_thread(self.parts.catalog.popular, categories)
            self._popular.put(categories, order)
        excluded = set(self._excluded(ask, history).tolist())
        # Looking at k + |excluded| rows is enough, however large the catalog is.
        candidates = order[: ask.k + len(excluded)].tolist()
        rows = [row for row in candidates if row not in excluded][: ask.k]
        scores = [float(self.parts.catalog.popularity[row]) for row in rows]
        return Recommendation(rows, scores, "popular", history.ignored, degraded, seconds)
