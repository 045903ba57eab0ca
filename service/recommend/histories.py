"""From what a request says of a person to rows and titles: the same for every way of answering.

Histories given and stored, what is left out, category filters, free titles, and popular items where nothing is known.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol, TypeVar, cast

import numpy as np
import structlog
from numpy.typing import NDArray

from index import Catalog
from index.filters.language import Filter
from index.live_catalog import LiveCatalog
from modeling.encoder.prompt import FreeItem
from modeling.encoder.user_encoder import CannotReadText
from service.caches.local import LruCache
from service.concurrency.searches import Searches
from service.engine.titles import TitleQueue
from service.errors import (
    Conflict,
    InvalidInput,
    NothingUsable,
    Overloaded,
    StoreUnavailable,
    shown,
)
from service.observability.metrics import Metrics
from service.recommend.filters import Filters
from service.recommend.requests import HistoryQuery, RankQuery, RecommendQuery, TitledItem
from service.settings import Settings
from service.stores.guarded import GuardedStore

log = structlog.get_logger(__name__)

IDS_SHOWN = 5  # in messages

NO_ROWS = np.empty(0, np.int64)
Part = int | str  # a row of the catalog, or a free title
T = TypeVar("T")


class Reader(Protocol):
    """The part of a model that reads a history: a dense encoder or a generative model."""

    @property
    def history_limit(self) -> int:
        """Newest items that are read."""

    def read_titles(self, titles: Sequence[str]) -> list[FreeItem]:
        """Free text as items of a history; raises CannotReadText."""


class ArtifactView(Protocol):
    """The part of a loaded artifact that is used here."""

    @property
    def name(self) -> str: ...
    @property
    def recipe(self) -> str: ...
    @property
    def reads(self) -> tuple[str, ...]: ...
    @property
    def catalog(self) -> Catalog: ...
    @property
    def reader(self) -> Reader: ...


@dataclass(slots=True)
class History:
    """A history as rows and free titles, oldest first: `parts` as the model reads it, `items` with those that are too
    old for it, `seen` the rows of all of them, also of the items that have one of the titles.

    `degraded` names what it had to be put together without, `seconds` how long the store took, where it was asked.
    """

    parts: list[int | str]
    titles: list[str]
    seen: list[int]
    ignored: list[str]
    degraded: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    items: Sequence[Part] = ()


def window_start(items: int, limit: int, block: int) -> int:
    """Return where the window over a history of so many items begins.

    It holds the newest items, at most `limit` and more than `limit - block`, and begins at a multiple of `block`: for
    `block` events in a row a history that grows begins with the same item, and what was read of it stays good.
    """
    return -(-max(0, items - limit) // block) * block


class Histories:
    """Reads requests for one artifact; `close` after the last."""

    def __init__(
        self,
        parts: ArtifactView,
        store: GuardedStore,
        settings: Settings,
        metrics: Metrics,
        *,
        catalog: LiveCatalog | None = None,
        block: int = 1,
    ) -> None:
        """`catalog`: of the artifact, as it is now; `block`: the window over a long history moves by so many items at a
        time."""
        self._parts, self._block = parts, block
        self._catalog = LiveCatalog(parts.catalog) if catalog is None else catalog
        self._store = store
        self._metrics = metrics
        self._titles: LruCache[FreeItem] = LruCache(settings.title_cache_entries)
        self._aside = Searches(settings.deadline_ms / 1000, metrics)
        self.filters = Filters(self._catalog, self._aside)
        self.titles = TitleQueue(
            self._read_titles,
            metrics,
            most_positions=settings.max_queued_tokens,
            patience_s=settings.max_queue_seconds,
        )
        self._trained_categories = frozenset(parts.catalog.known_categories)

    def close(self) -> None:
        """Stop the threads that read titles and look filters up."""
        self.titles.close()
        self._aside.close()

    # -- the history -----------------------------------------------------------------------------------------

    async def of(self, query: HistoryQuery) -> History:
        """Return the history of a request, stored and given; raises InvalidInput, NothingUsable."""
        if isinstance(query, RecommendQuery):
            self._check_categories(query.categories)
        if isinstance(query, (RecommendQuery, RankQuery)) and query.filter is not None:
            self.filters.check(query.filter)
        user_id = None if isinstance(query, RankQuery) and query.whole else query.user_id
        started = time.monotonic()
        stored, degraded = await self._stored(user_id)
        seconds = {"history": time.monotonic() - started} if user_id is not None else {}
        history = self._resolve(stored, query.history)
        if not history.parts and query.user_id is None:
            raise self._nothing_usable(query)
        history.degraded, history.seconds = degraded, seconds
        return history

    def excluded(self, query: RecommendQuery, history: History) -> NDArray[np.int64]:
        """Return the rows never to answer with, ascending."""
        rows = [row for row in map(self._catalog.row, query.exclude) if row is not None]
        if query.exclude_seen:
            rows += self._catalog.latest(history.seen)
        return np.array(sorted(set(rows)), np.int64) if rows else NO_ROWS

    async def readable(self, history: History, deadline: float) -> Sequence[int | FreeItem]:
        """Return the history as the model takes it, its free titles read; raises Conflict, Overloaded,
        DeadlineExceeded."""
        if not history.titles:
            return cast(list[int], history.parts)
        if "text" not in self._parts.reads:
            raise self.cannot_read_text(history.titles[0])
        return await self.read(history.parts, deadline)

    async def read(self, parts: Sequence[Part], deadline: float, field: str = "history") -> Sequence[int | FreeItem]:
        """Return rows and titles with the titles read; they stand in `field` of the request. Raises Conflict,
        Overloaded, DeadlineExceeded."""
        titles = [part for part in dict.fromkeys(parts) if isinstance(part, str)]
        if not titles:
            return cast(Sequence[int], parts)
        if "text" not in self._parts.reads:
            raise self.cannot_read_text(titles[0], field)
        read = {title: item for title in titles if (item := self._titles.get(title)) is not None}
        missing = [title for title in titles if title not in read]
        if missing:
            for item in await self._read(missing, deadline):
                read[item.title] = item
                self._titles.put(item.title, item)
        if self._titles.capacity:
            self._metrics.cache_requests("title", "miss" if missing else "hit").inc()
        return [read[part] if isinstance(part, str) else part for part in parts]

    async def aside(self, work: Callable[[], T]) -> T:
        """Return what brief `work` gives, off the event loop; raises Overloaded, DeadlineExceeded."""
        return await self._aside.run(work)

    def window(self, items: Sequence[object]) -> int:
        """Return where the part of so many items begins that the model reads."""
        return window_start(len(items), self._parts.reader.history_limit, self._block)

    async def allowed(self, wanted: Filter | None) -> NDArray[np.int64] | None:
        """Return the only rows to answer with, the same array for the same filter; None without one. Raises Overloaded,
        DeadlineExceeded."""
        return None if wanted is None else await self.filters.rows(wanted)

    async def popular(self, query: RecommendQuery, history: History) -> tuple[list[int], list[float]]:
        """Return popular rows and how often each was taken: the answer where nothing is known. Raises Overloaded,
        DeadlineExceeded."""
        open_rows = await self.filters.by_popularity(query.wanted)
        excluded = set(self.excluded(query, history).tolist())
        # Looking at k + |excluded| open rows is enough, however large the catalog is.
        rows = list(islice((row for row in open_rows if row not in excluded), query.k))
        return rows, [float(self._catalog.popularity[row]) for row in rows]

    async def most_popular(
        self, k: int, categories: Sequence[str], wanted: Filter | None = None
    ) -> tuple[list[int], list[float]]:
        """Return the k most popular rows and their counts, for no user in particular. Raises InvalidInput, Overloaded,
        DeadlineExceeded."""
        self._check_categories(categories)
        if wanted is not None:
            self.filters.check(wanted)
        nobody = History([], [], [], [], items=[])
        return await self.popular(RecommendQuery(k=k, exclude_seen=False, categories=categories, filter=wanted), nobody)

    # -- steps -----------------------------------------------------------------------------------------------

    async def _stored(self, user_id: str | None) -> tuple[list[str], list[str]]:
        if user_id is None:
            return [], []
        try:
            return [event.item_id for event in await self._store.history(user_id)], []
        except (StoreUnavailable, Overloaded) as error:
            # A recommendation without the stored part is worth more than none; the answer says so.
            log.warning("answering without the store", error=error.message)
            return [], ["store"]

    def _resolve(self, stored: Sequence[str], given: Sequence[str | TitledItem]) -> History:
        parts: list[int | str] = []
        titles: dict[str, None] = {}
        seen: list[int] = []
        ignored: dict[str, None] = {}
        items = [*stored, *given]
        catalog, trained = self._catalog, len(self._catalog.trained)
        rows = catalog.rows(items)
        if rows is not None and (not catalog.changed or max(rows, default=0) < trained):
            # All of them are ids of the artifact's catalog: no item needs a look of its own.
            return History(list(rows[self.window(rows) :]), [], rows, [], items=rows)
        for item in items:
            if isinstance(item, TitledItem):
                parts.append(item.title)
                titles[item.title] = None
                seen += catalog.titled(item.title)  # left out of the answer as its id would be
                continue
            row = catalog.row(item)
            if row is not None:
                seen.append(row)
            # An item that the artifact was trained on is read as it was then, however it changed since.
            read: int | str | None = catalog.trained_row(item)
            if read is None and row is not None and "text" in self._parts.reads:
                read = catalog.titles[row]
                titles[read] = None
            if read is None:
                ignored[item] = None
            else:
                parts.append(read)
        return History(parts[self.window(parts) :], list(titles), seen, list(ignored), items=parts)

    def _nothing_usable(self, query: HistoryQuery) -> NothingUsable:
        if not query.history:
            return NothingUsable(
                "neither history nor user_id is given; send at least one item id of the catalog, or a "
                "user_id (an unknown user gets popular items)",
                field="history",
            )
        ids = ", ".join(shown(item) for item in query.history[:IDS_SHOWN])
        more = f" and {len(query.history) - IDS_SHOWN} more" if len(query.history) > IDS_SHOWN else ""
        return NothingUsable(
            f"none of the items in history is in the catalog of {len(self._catalog)} items: "
            f"{ids}{more}; GET /items lists the ids there are, and a user_id would be answered with "
            "popular items",
            field="history",
        )

    def _read_titles(self, titles: Sequence[str]) -> list[FreeItem]:
        return self._parts.reader.read_titles(titles)

    async def _read(self, titles: list[str], deadline: float) -> list[FreeItem]:
        try:
            return await self.titles.read(titles, deadline)
        except CannotReadText:
            raise self.cannot_read_text(titles[0]) from None

    def cannot_read_text(self, title: str, field: str = "history") -> Conflict:
        """Return the error about a free title that this artifact cannot read."""
        return Conflict(
            f"{field} holds the free title {shown(title)}, and artifact {self._parts.name!r} (recipe "
            f"{self._parts.recipe!r}) reads {' and '.join(self._parts.reads)} only; send item ids of the "
            "catalog (GET /items finds them by title), or serve an artifact whose GET /artifacts row reads "
            "text",
            field=field,
            code="cannot_read_text",
        )

    def _check_categories(self, categories: Sequence[str]) -> None:
        for name in categories:
            if name not in self._trained_categories and not self._catalog.has_new_category(name):
                known = self._catalog.known_categories
                some = ", ".join(map(repr, known[:20])) + (", …" if len(known) > 20 else "")
                raise InvalidInput(
                    f"category {shown(name)} is not in the catalog; "
                    + (f"known are {some} ({len(known)} in all)" if known else "its items have no categories"),
                    field="categories",
                    code="unknown_category",
                )
