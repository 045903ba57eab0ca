"""The items of one loaded artifact as they are now: its catalog and index, or the names that it may write."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import structlog
from numpy.typing import NDArray

from index.base import ItemIndex, Keys
from index.live_catalog import ChangedItem, LiveCatalog
from index.live_index import LiveIndex
from modeling.encoder.prompt import FreeItem
from modeling.encoder.user_encoder import CannotReadText
from service.artifacts.loading import AnyLoaded, Embed
from service.concurrency.threads import in_thread
from service.engine.titles import TitleQueue
from service.errors import DeadlineExceeded
from service.item_stores.base import ItemContent, StoredItem
from service.observability.metrics import Metrics
from service.settings import Settings

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Data that an artifact needs to recommend an item: its key in the index (None: none is needed), or why it
    cannot."""

    key_W: Keys | None = None
    refusal: str | None = None


NOTHING_NEEDED = Prepared()


class ArtifactItems:
    """The items of one artifact. All methods run on the event loop; `index` may be read from other threads."""

    def __init__(self, parts: AnyLoaded, settings: Settings, metrics: Metrics) -> None:
        self.catalog = LiveCatalog(parts.catalog)
        self.index: ItemIndex | None = parts.index if parts.kind == "dense" else None
        self.refusals: dict[str, str] = {}
        """Items that this artifact cannot recommend, and why."""
        self._parts, self._metrics = parts, metrics
        self._live: LiveIndex | None = None
        self._numbers: dict[str, int] = {}  # of the last change that was applied to an item
        self._named = 0  # generation of the catalog that a model that writes knows of
        self._merging: asyncio.Task[None] | None = None
        embed = parts.embed if parts.kind == "dense" else None
        self._embedder = None if embed is None else TitleQueue(
            partial(_as_items, embed), metrics, most_positions=settings.max_queued_tokens, patience_s=0
        )  # fmt: skip

    def close(self) -> None:
        """Stop what runs in the background."""
        if self._embedder is not None:
            self._embedder.close()
        if self._merging is not None:
            self._merging.cancel()

    @property
    def name(self) -> str:
        """Of the artifact."""
        return self._parts.name

    @property
    def delta_size(self) -> int:
        """Items that were added since the last merge."""
        return 0 if self._live is None else self._live.delta_size

    def applied(self, item: StoredItem) -> bool:
        """Whether a change, or a later one of the same item, has been applied."""
        return self._numbers.get(item.item_id, 0) >= item.number

    # -- before a change -----------------------------------------------------------------------------------------

    async def prepare(self, item_id: str, content: ItemContent, deadline: float) -> Prepared:
        """Compute what an item needs; raises DeadlineExceeded, Overloaded, ModelError, NotReady."""
        if content.state != "live":
            return NOTHING_NEEDED
        if self._parts.kind == "generative":
            return Prepared(refusal=self._unwritable(item_id, content.title))
        index = self._parts.index
        given_here = content.vector is not None and content.vector_of == self._parts.version
        if given_here and index.takes_vectors and len(content.vector or ()) == index.dim:
            return Prepared(np.array(content.vector, np.float32))
        row = self.catalog.trained_row(item_id)
        if row is not None:
            return Prepared(index.keys(np.array([row]))[0])
        if not index.takes_vectors:
            return Prepared(refusal=self._uncounted())
        return await self._embedded(content.title, deadline)

    def _unwritable(self, item_id: str, title: str) -> str | None:
        assert self._parts.kind == "generative"
        if self.catalog.trained_row(item_id) is not None:
            return None
        return self._parts.model.item_refusal(title)

    def _uncounted(self) -> str:
        return (
            f"artifact {self.name!r} (recipe {self._parts.recipe!r}) counts interactions, and a new item has none; "
            "train an artifact on data that has it"
        )

    async def _embedded(self, title: str, deadline: float) -> Prepared:
        if self._embedder is None:
            return Prepared(refusal=self._needs_vector("reads item ids only"))
        try:
            (read,) = await self._embedder.read([title], deadline)
        except CannotReadText as error:
            return Prepared(refusal=self._needs_vector(str(error)))
        except DeadlineExceeded:
            raise DeadlineExceeded(
                "the title of the item was not embedded within the deadline", field="title"
            ) from None
        return Prepared(read.text_vector)

    def _needs_vector(self, why: str) -> str:
        return (
            f"artifact {self.name!r} (recipe {self._parts.recipe!r}) cannot embed a new item from its text ({why}); "
            f"give a vector of {self._parts.index.dim} numbers"  # type: ignore[union-attr]
        )

    # -- the change ----------------------------------------------------------------------------------------------

    def apply(self, changes: Sequence[tuple[StoredItem, Prepared]]) -> None:
        """Make changes the state that the next request finds; older ones than those applied are passed over."""
        added: list[tuple[int, Keys]] = []
        closed: list[int] = []
        size = len(self.catalog.trained)
        for item, prepared in changes:
            if self.applied(item):
                continue
            row = size + item.number
            closed += self.catalog.change(item.item_id, row, self._as_changed(item, prepared))
            self._numbers[item.item_id] = item.number
            self.refusals.pop(item.item_id, None)
            if prepared.refusal is not None:
                self.refusals[item.item_id] = prepared.refusal
            elif item.content.state == "live" and prepared.key_W is not None:
                added.append((row, prepared.key_W))
        if self._parts.kind == "dense":
            self._change_index(added, closed)

    def _as_changed(self, item: StoredItem, prepared: Prepared) -> ChangedItem | None:
        content = item.content
        if content.state == "deleted":
            return None
        trained = self.catalog.trained_row(item.item_id)
        popularity = 0 if trained is None else int(self.catalog.trained.popularity[trained])
        live = content.state == "live"
        # One that this artifact cannot find is not recommended as a popular one either.
        may = live and prepared.refusal is None
        return ChangedItem(
            item.item_id, content.title, content.categories, content.attributes, may, trained, popularity, live
        )

    def _change_index(self, added: Sequence[tuple[int, Keys]], closed: Sequence[int]) -> None:
        if not added and not closed:
            return
        assert self._parts.kind == "dense"
        live = self._live or LiveIndex(self._parts.index)
        live = live.changed(added, closed)
        self._live = self.index = live
        if self._merging is None and live.plan() is not None:
            self._merging = asyncio.create_task(self._merge())

    async def _merge(self) -> None:
        """Join the delta with what was merged before, in a thread; requests and changes go on meanwhile."""
        try:
            while self._live is not None and (plan := self._live.plan()) is not None:
                started = time.monotonic()
                joined = await in_thread(plan.run)
                self._live = self.index = self._live.after(plan, joined)
                self._metrics.item_merge_seconds.observe(time.monotonic() - started)
        except Exception as error:
            log.error("items could not be merged; they are searched one by one", error=repr(error), exc_info=error)
        finally:
            self._merging = None

    # -- a model that writes -------------------------------------------------------------------------------------

    def renew_names(self) -> None:
        """Let a model that writes know of the changes since the last call; before the next request is written."""
        if self._parts.kind == "generative" and self._named != self.catalog.generation:
            self._named = self.catalog.generation
            self._parts.model.change_items(self.catalog.withdrawn(), self.catalog.new_titles())

    def of_model(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows as a model that writes knows them: an item that changed keeps the row it was trained under."""
        if not self.catalog.changed or not len(rows) or rows.max() < (size := len(self.catalog.trained)):
            return rows
        assert self._parts.kind == "generative"
        found: list[int] = []
        for row in rows[rows >= size].tolist():
            item = self.catalog.item(row)
            if item is not None and item.trained_row is not None:
                found.append(item.trained_row)
            elif self._parts.model.adds_items:
                found.append(row)
        return np.union1d(rows[rows < size], np.array(found, np.int64))

    def closed_to_model(self, exclude: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows that a model that writes must not answer with: the excluded ones, and what may not be shown now."""
        withdrawn = self.catalog.withdrawn() if self.catalog.changed else ()
        return np.union1d(exclude, np.array(sorted(withdrawn), np.int64)) if withdrawn else exclude


def _as_items(embed: Embed, titles: Sequence[str]) -> list[FreeItem]:
    return [FreeItem(title, text_vector=vector_D) for title, vector_D in zip(titles, embed(titles), strict=True)]
