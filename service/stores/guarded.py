"""A store with time limits and metrics, and with one error for everything that can go wrong."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Sequence
from typing import TypeVar

import structlog

from service.errors import AnyoError, Conflict, Overloaded, StoreUnavailable
from service.observability.metrics import Metrics
from service.stores.base import Appended, Event, EventConflict, HistoryStore, StoreDown
from service.stores.user_list import UserPage, list_users

log = structlog.get_logger(__name__)
T = TypeVar("T")

LISTS_AT_ONCE = 8  # lists of users that are read at the same time
PART_OF = {"history": "read", "append": "write", "forget": "write", "users": "list"}  # label of anyo_store_up
NOTHING_DONE = {
    "append": "; nothing was stored: send it again later",
    "forget": "; nothing was deleted: send it again later",
}
SENT_AGAIN = (
    "; what was sent may or may not be stored: send it again with the same event_id, and it is not stored twice"
)
LOOKED_UP = (
    "; what was sent may or may not be stored: GET /users/{user_id} shows it, for events without an event_id are "
    "stored again when they are sent again"
)
FORGOTTEN_AGAIN = "; the user may or may not be deleted: send it again"


class GuardedStore:
    """A store with time limits, metrics, and one error for everything that can go wrong: StoreUnavailable."""

    def __init__(self, store: HistoryStore, metrics: Metrics, *, read_timeout_s: float, write_timeout_s: float) -> None:
        self._store = store
        self._metrics = metrics
        self._read_timeout_s = read_timeout_s
        self._write_timeout_s = write_timeout_s
        self._lists = 0

    async def append(self, user_id: str, events: Sequence[Event]) -> Appended:
        """As in HistoryStore; raises Conflict, StoreUnavailable."""
        repeatable = all(event.event_id is not None for event in events)
        again = SENT_AGAIN if repeatable else LOOKED_UP
        return await self._guard("append", self._store.append(user_id, events), self._write_timeout_s, again)

    async def history(self, user_id: str) -> list[Event]:
        """As in HistoryStore; raises StoreUnavailable."""
        return await self._guard("history", self._store.history(user_id), self._read_timeout_s)

    async def forget(self, user_id: str) -> int:
        """As in HistoryStore; raises StoreUnavailable."""
        return await self._guard("forget", self._store.forget(user_id), self._write_timeout_s, FORGOTTEN_AGAIN)

    async def users(self, query: str, limit: int, offset: int = 0, after: str | None = None) -> UserPage:
        """As `list_users`, for at most half of the read limit; raises InvalidInput, Overloaded, StoreUnavailable."""
        if self._lists >= LISTS_AT_ONCE:
            raise Overloaded(f"{self._lists} lists of users are being read; ask again", retry_after=1)
        self._lists += 1
        try:
            work = list_users(self._store, query, limit, offset, after, self._read_timeout_s / 2)
            return await self._guard("users", work, self._read_timeout_s)
        finally:
            self._lists -= 1

    async def _guard(self, op: str, work: Awaitable[T], timeout_s: float, unknown: str | None = None) -> T:
        """Await an operation; `unknown` is what to do where it is not known whether a write was carried out."""
        up, started = self._metrics.store_up(PART_OF[op]), time.perf_counter()
        try:
            async with asyncio.timeout(timeout_s):
                result = await work
        except EventConflict as conflict:
            raise Conflict(str(conflict), field="events", code="event_conflict") from None
        except AnyoError:
            raise
        except TimeoutError:
            up.set(0)
            raise _unavailable(f"the store did not finish '{op}' within {timeout_s:g} s", unknown) from None
        except StoreDown as down:
            up.set(0)
            message = f"the store is not available for '{op}'"
            if unknown is not None and not down.maybe_done:
                raise _unavailable(message + NOTHING_DONE[op], None, down.retry_s) from down
            raise _unavailable(message, unknown, down.retry_s) from down
        except Exception as error:
            up.set(0)
            log.error("store failed", op=op, error=repr(error), exc_info=error)
            raise _unavailable(f"the store failed at '{op}'; the log says why", unknown) from error
        up.set(1)
        self._metrics.store_seconds(op).observe(time.perf_counter() - started)
        return result


def _unavailable(message: str, unknown: str | None, retry_s: float | None = None) -> StoreUnavailable:
    return StoreUnavailable(
        message + (unknown or ""),
        code=None if unknown is None else "store_outcome_unknown",
        retry_after=None if retry_s is None else max(1, math.ceil(retry_s)),
    )
