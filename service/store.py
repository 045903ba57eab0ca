"""Users' histories: what a store must do, opening one by URL, and the guard around it.

A store keeps, for every user, the newest events in order of their time (then of arrival). An append that has
returned is as safe as the store can make it: on the disk (SQLite), or acknowledged by Redis, which is on the
disk where Redis runs with `appendfsync always`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import structlog

from service.errors import AnyoError, Conflict, StartError, StoreUnavailable
from service.metrics import Metrics
from service.settings import Settings, without_password

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

    @classmethod
    def between(cls, event_id: str, before: str, now: str) -> EventConflict:
        """Return the conflict of an event_id that was stored with item `before` and is sent with `now`."""
        return cls(
            f"event_id {event_id!r} was stored with item {before!r} and is now sent with {now!r}; use a new "
            "event_id for another event"
        )


class StoreDown(Exception):
    """The store cannot be reached or refuses; known and logged where it arose.

    `maybe_done` says that the operation may nevertheless have been carried out, `retry_s` when to come back.
    """

    def __init__(self, message: str, *, maybe_done: bool, retry_s: float | None = None) -> None:
        super().__init__(message)
        self.maybe_done = maybe_done
        self.retry_s = retry_s


class HistoryStore(Protocol):
    """What the service needs of a store. None of the methods blocks the event loop."""

    async def open(self) -> None:
        """Connect, and create what is missing; raises OSError, StartError or the backend's own error."""

    async def append(self, user_id: str, events: Sequence[Event]) -> Appended:
        """Store all events or none; raises EventConflict. Returning means that the backend acknowledged them."""

    async def history(self, user_id: str) -> list[Event]:
        """Return what is kept of a user, oldest first; empty for an unknown user."""

    async def forget(self, user_id: str) -> int:
        """Delete everything of a user, return how many events that were."""

    async def users(self, query: str, limit: int, offset: int) -> list[UserSummary]:
        """Return users whose id contains `query`, the most recently active first."""

    async def close(self) -> None:
        """Finish what was begun and disconnect."""


def open_store(url: str, settings: Settings, metrics: Metrics) -> HistoryStore:
    """Return the (not yet opened) store of a URL, as `settings` say; raises StartError for an unknown URL."""
    scheme, separator, rest = url.partition("://")
    if scheme == "sqlite" and separator and rest[:1] == "/" and rest[1:]:
        from service.store_sqlite import SqliteStore

        return SqliteStore(rest[1:], settings.store_history)
    if scheme in ("redis", "rediss", "unix") and separator and rest:
        # Imported late, like the other backend: a process loads only the one that it uses.
        from service.store_redis import RedisStore

        return RedisStore(url, settings, metrics)
    raise StartError(
        f"store URL {without_password(url)!r} is not known; known are sqlite:///PATH, sqlite:///:memory:, "
        "redis://HOST:PORT/DB, rediss://HOST:PORT/DB and unix://PATH"
    )


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
                f"the store did not finish '{op}' within {timeout_s:g} s" + _what_became_of(op, maybe_done=True)
            ) from None
        except StoreDown as down:
            self._metrics.store_up.set(0)
            raise StoreUnavailable(
                f"the store is not available for '{op}'" + _what_became_of(op, maybe_done=down.maybe_done),
                retry_after=None if down.retry_s is None else max(1, math.ceil(down.retry_s)),
            ) from down
        except Exception as error:
            self._metrics.store_up.set(0)
            log.error("store failed", op=op, error=repr(error), exc_info=error)
            raise StoreUnavailable(f"the store failed at '{op}'; the log says why") from error
        self._metrics.store_up.set(1)
        self._metrics.store_seconds(op).observe(time.perf_counter() - started)
        return result


def _what_became_of(op: str, *, maybe_done: bool) -> str:
    if op != "append":
        return ""
    if maybe_done:
        return "; what was sent may or may not be stored: send it again with the same event_id"
    return "; nothing was stored: send it again later"
