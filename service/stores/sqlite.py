"""The embedded store: one SQLite file, nothing to install, histories survive restarts and kill -9.

WAL mode lets reads go on while a write is being forced to disk, and `synchronous=FULL` forces it before the
append returns. One thread writes, one reads histories and one reads lists, each with a connection of its own: a search
through all users keeps nobody's history waiting. Appends that arrive while the disk is busy are committed together
(group commit), because the flush is what costs; reads are answered one by one.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import structlog

from service.errors import Overloaded, StartError
from service.observability.metrics import Metrics
from service.settings import Settings
from service.settings.store_kinds.sqlite import SqliteUrl
from service.stores.base import Appended, Event, EventConflict, StoreDown
from service.stores.sqlite_file import check, connect, why_not_opened
from service.stores.user_list import Place, UserPart, UserSummary

log = structlog.get_logger(__name__)
T = TypeVar("T")
Job = tuple[Callable[[sqlite3.Connection], Any], "Future[Any]"]

SCHEMA_VERSION = 1
USERS_AT_ONCE = 5000  # users that one job of a list looks at: a millisecond or two
GROUP = 256  # most appends in one commit
MAX_WAITING = 4096  # jobs that may wait for a connection

SCHEMA = """
CREATE TABLE events (
    seq      INTEGER PRIMARY KEY,
    user_id  TEXT NOT NULL,
    at       REAL NOT NULL,
    item_id  TEXT NOT NULL,
    event_id TEXT
);
CREATE INDEX events_in_order ON events (user_id, at, seq);
CREATE UNIQUE INDEX events_once ON events (user_id, event_id) WHERE event_id IS NOT NULL;
CREATE TABLE users (user_id TEXT PRIMARY KEY, events INTEGER NOT NULL, last_at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX users_by_time ON users (last_at DESC);
"""


def open_url(place: SqliteUrl, settings: Settings, metrics: Metrics) -> SqliteStore:
    """Return the (not yet opened) store in a file."""
    return SqliteStore(place.path, settings.store_history)


class CommitFailed(sqlite3.OperationalError):
    """The disk refused a commit at its end: what it wrote may or may not come back after a crash."""


class SqliteStore:
    """A HistoryStore in the file `path` (`:memory:` for one that forgets), keeping `keep` events a user."""

    def __init__(self, path: str, keep: int) -> None:
        self._path = path
        self._keep = keep
        self._writer = _Worker("anyo-store-write", together=True)
        in_memory = path == ":memory:"  # has one connection
        self._reader = self._writer if in_memory else _Worker("anyo-store-read", together=False)
        self._lister = self._writer if in_memory else _Worker("anyo-store-list", together=False)

    async def open(self) -> None:
        """Open or create the file; raises StartError for one that is damaged, not ours, locked or not writable."""
        try:
            if self._path != ":memory:":
                Path(self._path).parent.mkdir(parents=True, exist_ok=True)
            self._writer.start(self._connect)
            await self._writer.do(lambda connection: None)  # a transaction that could write
            await self._writer.do(check)
        except (sqlite3.Error, OSError, ValueError) as error:
            raise StartError(why_not_opened(self._path, error)) from error
        for worker in {self._reader, self._lister} - {self._writer}:
            worker.start(self._connect)

    async def append(self, user_id: str, events: Sequence[Event]) -> Appended:
        """Store all events or none, and return once they are on the disk."""
        return await _do(self._writer, lambda connection: _append(connection, user_id, events, self._keep))

    async def history(self, user_id: str) -> list[Event]:
        """Return a user's events, oldest first."""
        return await _do(self._reader, lambda connection: _history(connection, user_id))

    async def forget(self, user_id: str) -> int:
        """Delete a user's events; `secure_delete` overwrites them, so a later checkpoint leaves no copy in the file."""
        return await _do(self._writer, lambda connection: _forget(connection, user_id))

    async def users_part(self, query: str, after: Place | None, most: int) -> UserPart:
        """Look at USERS_AT_ONCE users behind `after` and return at most `most` whose id contains `query`."""
        return await _do(self._lister, lambda connection: _users(connection, query, after, most))

    def _connect(self) -> sqlite3.Connection:
        return connect(self._path, SCHEMA, SCHEMA_VERSION)

    async def close(self) -> None:
        """Commit what waits and close the file."""
        for worker in (self._lister, self._reader, self._writer):
            await asyncio.to_thread(worker.stop)


async def _do(worker: _Worker, work: Callable[[sqlite3.Connection], T]) -> T:
    try:
        return await worker.do(work)
    except sqlite3.Error as error:
        log.error("store failed", error=repr(error))
        raise StoreDown(str(error), maybe_done=isinstance(error, CommitFailed)) from error


class _Worker:
    """A thread with a connection; `together`: jobs that wait together are committed together."""

    def __init__(self, name: str, *, together: bool) -> None:
        self._together = together
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._connect: Callable[[], sqlite3.Connection] = lambda: sqlite3.connect(":memory:")

    def start(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._thread.start()

    async def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._jobs.qsize() >= MAX_WAITING:
            raise Overloaded(f"{MAX_WAITING} operations wait for the store", retry_after=1)
        future: Future[T] = Future()
        self._jobs.put((work, future))
        return await asyncio.wrap_future(future)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()

    def _loop(self) -> None:
        connection: sqlite3.Connection | None = None
        while (job := self._jobs.get()) is not None:
            group, last = self._take_more(job)
            try:
                # A connection that could not be made is tried again with the next job.
                connection = connection or self._connect()
                if self._together:
                    _run_group(connection, group)
                else:
                    _run_one_by_one(connection, group)
            except Exception as error:
                for _, future in group:
                    _settle(future, error=error)
            if last:
                break
        if connection is not None:
            connection.close()

    def _take_more(self, job: Job) -> tuple[list[Job], bool]:
        group = [job]
        while len(group) < GROUP:
            try:
                other = self._jobs.get_nowait()
            except queue.Empty:
                break
            if other is None:
                return group, True
            group.append(other)
        return group, False


def _run_one_by_one(connection: sqlite3.Connection, group: list[Job]) -> None:
    """Run jobs that only read, each answered as soon as it is done."""
    for work, future in group:
        if not future.set_running_or_notify_cancel():  # nobody waits for it any more
            continue
        try:
            result = work(connection)
        except Exception as error:
            _settle(future, error=error)
        else:
            _settle(future, result)


def _run_group(connection: sqlite3.Connection, group: list[Job]) -> None:
    """Run jobs in one transaction, each in a savepoint, so that one that fails takes nothing with it."""
    settled: list[tuple[Future[Any], Any, Exception | None]] = []
    connection.execute("BEGIN IMMEDIATE")
    try:
        for work, future in group:
            if not future.set_running_or_notify_cancel():
                continue
            connection.execute("SAVEPOINT job")
            try:
                settled.append((future, work(connection), None))
            except Exception as error:
                connection.execute("ROLLBACK TO job")
                settled.append((future, None, error))
            connection.execute("RELEASE job")
        _commit(connection)
    except Exception:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    # Only now are the writes on the disk.
    for future, result, failure in settled:
        _settle(future, result, failure)


def _commit(connection: sqlite3.Connection) -> None:
    try:
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise CommitFailed(str(error)) from error


def _settle(future: Future[Any], result: Any = None, error: Exception | None = None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _append(connection: sqlite3.Connection, user_id: str, events: Sequence[Event], keep: int) -> Appended:
    duplicates = 0
    first = None  # `seq` of the first event that is stored here; all of this append follow it
    inserted = 0
    for event in events:
        if _is_duplicate(connection, user_id, event):
            duplicates += 1
            continue
        row = connection.execute(
            "INSERT INTO events (user_id, at, item_id, event_id) VALUES (?, ?, ?, ?)",
            (user_id, event.timestamp, event.item_id, event.event_id),
        ).lastrowid
        first = row if first is None else first
        inserted += 1
    connection.execute(
        "DELETE FROM events WHERE seq IN "
        "(SELECT seq FROM events WHERE user_id = ? ORDER BY at DESC, seq DESC LIMIT -1 OFFSET ?)",
        (user_id, keep),
    )
    total, last_at = connection.execute("SELECT COUNT(*), MAX(at) FROM events WHERE user_id = ?", (user_id,)).fetchone()
    connection.execute("INSERT OR REPLACE INTO users VALUES (?, ?, ?)", (user_id, total, last_at))
    # What the deletion took at once was never kept.
    stored = connection.execute(
        "SELECT COUNT(*) FROM events WHERE user_id = ? AND seq >= ?", (user_id, first)
    ).fetchone()[0]
    return Appended(stored, duplicates, total, inserted - stored)


def _is_duplicate(connection: sqlite3.Connection, user_id: str, event: Event) -> bool:
    if event.event_id is None:
        return False
    row = connection.execute(
        "SELECT item_id FROM events WHERE user_id = ? AND event_id = ?", (user_id, event.event_id)
    ).fetchone()
    if row is not None and row[0] != event.item_id:
        raise EventConflict.between(event.event_id, row[0], event.item_id)
    return row is not None


def _history(connection: sqlite3.Connection, user_id: str) -> list[Event]:
    rows = connection.execute("SELECT item_id, at, event_id FROM events WHERE user_id = ? ORDER BY at, seq", (user_id,))
    return [Event(*row) for row in rows]


def _forget(connection: sqlite3.Connection, user_id: str) -> int:
    connection.execute("DELETE FROM users WHERE user_id = ?", (user_id,))
    return connection.execute("DELETE FROM events WHERE user_id = ?", (user_id,)).rowcount


def _users(connection: sqlite3.Connection, query: str, after: Place | None, most: int) -> UserPart:
    """Two ranges of the index, so that a page begins at its place however many users have the same time."""
    ranges: list[tuple[str, tuple[object, ...]]] = [("1", ())]
    if after is not None:
        ranges = [("last_at = ? AND user_id > ?", tuple(after)), ("last_at < ?", (after.last_event_at,))]
    rows: list[UserSummary] = []
    left = USERS_AT_ONCE
    for condition, values in ranges:
        part = f"FROM users WHERE {condition} ORDER BY last_at DESC, user_id"  # conditions are ours
        found = connection.execute(
            "SELECT user_id, (SELECT events FROM users WHERE users.user_id = part.user_id), last_at "  # noqa: S608
            f"FROM (SELECT user_id, last_at {part} LIMIT ?) AS part WHERE instr(user_id, ?) > 0 LIMIT ?",
            (*values, left, query, most - len(rows)),
        )
        rows += [UserSummary(*row) for row in found]
        if len(rows) == most:
            return UserPart(rows, Place(rows[-1].last_event_at, rows[-1].user_id))
        last = connection.execute(f"SELECT last_at, user_id {part} LIMIT 1 OFFSET ?", (*values, left - 1)).fetchone()
        if last is not None:
            return UserPart(rows, Place(*last))
        left -= connection.execute(f"SELECT COUNT(*) FROM (SELECT 1 {part} LIMIT ?)", (*values, left)).fetchone()[0]  # noqa: S608
    return UserPart(rows, None)
