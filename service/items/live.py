"""Changes of items, from whoever makes them to every artifact of every replica.

A change is computed (embedded) first, then stored, then applied to all artifacts of this process, then acknowledged.
Other replicas read the store's changes a few times a second and apply them in the same way. An artifact that is loaded
takes over all changes before it is ready.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar
from weakref import WeakSet

import structlog

from service.errors import AnyoError, Conflict, NotReady, StoreUnavailable
from service.item_stores.base import ItemStore, ItemWrite, StoredItem, Written
from service.items.artifact_items import ArtifactItems, Prepared
from service.observability.metrics import Metrics
from service.settings import Settings
from service.stores.base import StoreDown

log = structlog.get_logger(__name__)
T = TypeVar("T")

POLL_S = 0.2  # between two looks at the changes of others
LATE_S = 2.0  # without a look, after which answers say that items may have changed
READ_S = 5.0  # longest wait for one part of the changes
PART = 256  # changes that are read, and embedded, together
EMBED_S = 60.0  # longest wait for the text network where nobody waits for the answer
NOT_SET = (
    "items cannot be changed here: ANYO_ITEM_STORE is not set; set it to where changes shall be kept, e.g. "
    "sqlite:///data/items.sqlite"
)


class LiveItems:
    """The changed items of one process. All methods run on the event loop. `open`, `read_all`, `start`, `close`."""

    def __init__(self, settings: Settings, metrics: Metrics, store: ItemStore | None) -> None:
        self._settings, self._metrics, self._store = settings, metrics, store
        self.records: dict[str, StoredItem] = {}
        """The newest change of every changed item, as far as it was read."""
        self._attached: WeakSet[ArtifactItems] = WeakSet()
        self._read_to = 0  # every change up to this number was applied
        self._looked_at: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._went_back = False

    # -- life ------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the store; raises StartError."""
        if self._store is not None:
            await self._store.open()

    async def read_all(self, note: Callable[[str], None]) -> None:
        """Read every change there is, however long the store is away: without it, withdrawn items would be shown."""
        while self._store is not None:
            try:
                await self._look()
                return
            except StoreUnavailable as error:
                note(f"waiting for the item store: {error.message}")
                await asyncio.sleep(POLL_S)

    def start(self) -> None:
        """Look at changes from now on."""
        if self._store is not None:
            self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Stop looking, and close the store."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._store is not None:
            await self._store.close()

    # -- asked by others -------------------------------------------------------------------------------------

    @property
    def lag_s(self) -> float:
        """Seconds since the changes of others were last read to their end; 0 without a store."""
        if self._store is None or self._looked_at is None:
            return 0.0
        return max(0.0, time.monotonic() - self._looked_at)

    @property
    def delta_size(self) -> int:
        """Items that were added since the last merge, of the artifact that has most of them."""
        return max((items.delta_size for items in self._attached), default=0)

    def count(self, state: str) -> int:
        """Number of changed items in a state."""
        return sum(item.content.state == state for item in list(self.records.values()))

    def degraded(self) -> list[str]:
        """``["items"]`` while changes of other replicas cannot be read, else nothing."""
        return ["items"] if self.lag_s > LATE_S else []

    def trouble(self) -> str | None:
        """Why only a restart can mend it; None while all is well."""
        return (
            "the item store has fewer changes than were read from it (a restored backup)" if self._went_back else None
        )

    async def get(self, item_id: str) -> StoredItem | None:
        """Return an item as it is stored; raises Conflict (no store), StoreUnavailable."""
        return await self._ask("get", lambda store: store.get(item_id), READ_S)

    # -- changes ---------------------------------------------------------------------------------------------

    async def write(self, writes: Sequence[ItemWrite], deadline: float) -> list[Written]:
        """Store changes and apply them here; what returns is found, or gone, from the next request on.

        Raises Conflict (no store, too many items, or no artifact that can recommend a new one), StoreUnavailable,
        DeadlineExceeded, Overloaded, ModelError, NotReady; nothing is stored then, unless the code is
        `store_outcome_unknown`.
        """
        self._refuse_too_many(writes)
        attached = list(self._attached)
        ready: dict[ArtifactItems, list[Prepared]] = {}
        for items in attached:
            try:
                ready[items] = await self._prepared(items, writes, deadline)
            except NotReady:
                if items in self._attached:  # else it was unloaded meanwhile
                    raise
        for place, write in enumerate(writes):
            reasons = [prepared[place].refusal for prepared in ready.values()]
            if reasons and all(reasons):
                raise Conflict(f"item {write.item_id[:80]!r} was not stored: {reasons[0]}", code="cannot_add_item")
        written = await self._ask("write", lambda store: store.write(writes), self._settings.deadline_ms / 1000)
        self._note([one.item for one in written if one.item.version])
        for items, prepared in ready.items():
            items.apply([(one.item, now) for one, now in zip(written, prepared, strict=True)
                         if one.outcome == "changed"])  # fmt: skip
        # What others had stored, and artifacts that came meanwhile.
        stored = [one.item for one in written if one.item.version]
        for items in list(self._attached):
            await self._bring(items, stored, deadline)
        return written

    async def attach(self, items: ArtifactItems) -> None:
        """Let an artifact have all changes: those that there are before this returns, and all later ones."""
        self._attached.add(items)
        deadline = time.monotonic() + self._settings.load_seconds
        while missing := [item for item in self.records.values() if not items.applied(item)]:
            missing.sort(key=lambda item: item.number)
            await self._bring(items, missing[:PART], deadline)

    def detach(self, items: ArtifactItems) -> None:
        """An artifact is not served any more."""
        self._attached.discard(items)

    # -- steps -----------------------------------------------------------------------------------------------

    def _refuse_too_many(self, writes: Sequence[ItemWrite]) -> None:
        most = self._settings.max_changed_items
        new = sum(write.item_id not in self.records for write in writes)
        if new and len(self.records) + new > most:
            raise Conflict(
                f"{len(self.records)} items are changed already, and at most {most} may be (ANYO_MAX_CHANGED_ITEMS); "
                "train an artifact on the new items, or raise it",
                code="too_many_items",
            )

    def _note(self, stored: Sequence[StoredItem]) -> None:
        for item in stored:
            known = self.records.get(item.item_id)
            if known is None or known.number < item.number:
                self.records[item.item_id] = item

    async def _prepared(
        self, items: ArtifactItems, writes: Sequence[ItemWrite | StoredItem], deadline: float
    ) -> list[Prepared]:
        return list(await asyncio.gather(*(items.prepare(each.item_id, each.content, deadline) for each in writes)))

    async def _bring(self, items: ArtifactItems, changes: Sequence[StoredItem], deadline: float) -> None:
        """Apply changes that have been stored; an item that cannot be embedded now is noted as such."""
        missing = [item for item in changes if not items.applied(item)]
        # What is withdrawn needs no computing, and must not wait for it.
        quick = [item for item in missing if item.content.state != "live"]
        slow = [item for item in missing if item.content.state == "live"]
        items.apply([(item, Prepared()) for item in quick])
        if slow:
            found = await asyncio.gather(*(self._one(items, item, deadline) for item in slow))
            items.apply(list(zip(slow, found, strict=True)))

    async def _one(self, items: ArtifactItems, item: StoredItem, deadline: float) -> Prepared:
        try:
            return await items.prepare(item.item_id, item.content, deadline)
        except AnyoError as error:
            log.warning("an item cannot be recommended", item=item.item_id, artifact=items.name, error=error.message)
            return Prepared(refusal=f"it could not be embedded: {error.message}")

    async def _look(self) -> None:
        """Read and apply changes until there are no more; raises StoreUnavailable."""
        while True:
            found = await self._ask("changes", lambda store: store.changes(self._read_to, PART), READ_S)
            if found.newest < self._read_to and not self._went_back:
                self._went_back = True
                log.error("the item store went back", newest=found.newest, read=self._read_to)
            self._note(found.items)
            for items in list(self._attached):
                await self._bring(items, found.items, time.monotonic() + EMBED_S)
            if found.items:
                self._read_to = found.items[-1].number
            if len(found.items) < PART:
                self._looked_at = time.monotonic()
                return

    async def _follow(self) -> None:
        while True:
            try:
                await self._look()
            except StoreUnavailable:
                pass  # logged and counted where it arose
            except Exception as error:  # the next look is to be taken all the same
                log.error("changes of items could not be applied", error=repr(error), exc_info=error)
            await asyncio.sleep(POLL_S)

    async def _ask(self, op: str, ask: Callable[[ItemStore], Awaitable[T]], timeout_s: float) -> T:
        if self._store is None:
            raise Conflict(NOT_SET, code="items_read_only")
        up, started = self._metrics.item_store_up, time.perf_counter()
        try:
            async with asyncio.timeout(timeout_s):
                found = await ask(self._store)
        except AnyoError:
            raise
        except Exception as error:
            up.set(0)
            maybe_done = op == "write" and (not isinstance(error, StoreDown) or error.maybe_done)
            retry_s = error.retry_s if isinstance(error, StoreDown) else None
            log.warning("the item store failed", op=op, error=str(error) or repr(error))
            raise StoreUnavailable(
                f"the item store did not carry out {op!r}"
                + ("; what was sent may or may not be stored: send it again" if maybe_done else ""),
                code="store_outcome_unknown" if maybe_done else None,
                retry_after=None if retry_s is None else max(1, math.ceil(retry_s)),
            ) from error
        up.set(1)
        self._metrics.item_store_seconds(op).observe(time.perf_counter() - started)
        return found
