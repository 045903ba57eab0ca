"""Users' histories: what a store must do, opening one by URL, and the guard around it.

A store keeps, for every user, the newest events in order of their time (then of arrival). An append that has
returned is on the disk: it survives the process and the machine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import structlog

from service.errors import AnyoError, Conflict, StartError, StoreUnavailable
from service.metrics import Metrics

log = structlog.get_logger(__name__)
T = TypeVar("T")


class Event(NamedTuple):
    """A user took an item. `event_id`, where given, makes the append idempotent; `timestamp` is Unix seconds."""

    item_id: str
    timestamp: float
    event_id: str | None = None


class Appended(NamedTuple):
    """What an append did: events stored now, events that were there already, events the user has in all."""

    stored: int
    duplicates: int
    total: int


class UserSummary(NamedTuple):
    """A user in a list: how many events are kept, and when the newest happened (Unix seconds)."""

    user_id: str
    events: int
    last_event_at: float


class EventConflict(Exception):
    """An event_id was used before for another item; the message names all three."""


class HistoryStore(Protocol):
    """What the service needs of a store. None of the methods blocks the event loop."""

    async def open(self) -> None:
        """Connect, and create what is missing; raises OSError or the backend's own error."""

    async def append(self, user_id: str, events: Sequence[Event]) -> Appended:
        """Store all events or none; raises EventConflict. Returning means they are on the disk."""

    async def history(self, user_id: str) -> list[Event]:
        """Return what is kept of a user, oldest first; empty for an unknown user."""

    async def forget(self, user_id: str) -> int:
        """Delete everything of a user, return how many events that were."""

    async def users(self, query: str, limit: int, offset: int) -> list[UserSummary]:
        """Return users whose id contains `query`, the most recently active first."""

    async def close(self) -> None:
        """Finish what was begun and disconnect."""


def open_store(url: str, keep: int) -> HistoryStore:
    """Return the (not yet opened) store of a URL, keeping `keep` events a user; raises StartError for others."""
    scheme, separator, rest = url.partition(":///")
    if scheme == "sqlite" and separator and rest:
        from service.store_sqlite import SqliteStore

        return SqliteStore(rest, keep)
    raise StartError(f"store URL {url!r} is not known; known are sqlite:///PATH and sqlite:///:memory:")


class GuardedStore:
    """A store with time limits, metrics, and one error for everything that can go wrong: StoreUnavailable."""

    def __init__(self, store: HistoryStore, metrics: Metrics, *, read_timeout_s: float, write_timeout_s: float) -> None:
        self._store = store
        self._metrics = metrics
        self._read_timeout_s = read_timeout_s
        self._write_timeout_s = write_timeout_s

    async def append(self, user_id: str, events: Sequence[Event]) -> Appended:
        """As in HistoryStore; raises Conflict, StoreUnavailable."""
        return await self._guard("append", self._store.append(user_id, events), self._write_timeout_s)

    async def history(self, user_id: str) -> list[Event]:
        """As in HistoryStore; raises StoreUnavailable."""
        return await self._guard("history", self._store.history(user_id), self._read_timeout_s)

    async def forget(self, user_id: str) -> int:
        """As in HistoryStore; raises StoreUnavailable."""
        return await self._guard("forget", self._store.forget(user_id), self._write_timeout_s)

    async def users(self, query: str, limit: int, offset: int) -> list[UserSummary]:
        """As in HistoryStore; raises StoreUnavailable."""
        return await self._guard("users", self._store.users(query, limit, offset), self._read_timeout_s)

    async def _guard(self, op: str, work: Awaitable[T], timeout_s: float) -> T:
        started = time.perf_counter()
        try:
            async with asyncio.timeout(timeout_s):
                result = await work
        except EventConflict as conflict:
            raise Conflict(str(conflict), field="events", code="event_conflict") from None
        except AnyoError:
            raise
        except TimeoutError:
            self._metrics.store_up.set(0)
            raise StoreUnavailable(
                f"the store did not finish '{op}' within {timeout_s:g} s"
                + ("; what was sent may or may not be stored: send it again with the same event_id"
                   if op == "append" else "")
            ) from None  # fmt: skip
        except Exception as error:
            self._metrics.store_up.set(0)
            log.error("store failed", op=op, error=repr(error), exc_info=error)
            raise StoreUnavailable(f"the store failed at '{op}'; the log says why") from error
        self._metrics.store_up.set(1)
        self._metrics.store_seconds(op).observe(time.perf_counter() - started)
        return result
