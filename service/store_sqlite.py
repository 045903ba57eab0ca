"""The embedded store: one SQLite file, nothing to install, histories survive restarts and kill -9.

WAL mode lets reads go on while a write is being forced to disk, and `synchronous=FULL` forces it before the
append returns. One thread writes and one reads, each with a connection of its own. Appends that arrive while
the disk is busy are committed together (group commit), because the flush is what costs.
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

from service.errors import Overloaded
from service.store import Appended, Event, EventConflict, UserSummary

T = TypeVar("T")
Job = tuple[Callable[[sqlite3.Connection], Any], "Future[Any]"]

SCHEMA_VERSION = 1
GROUP = 256  # most appends in one commit
MAX_WAITING = 4096  # jobs that may wait for a connection
BUSY_TIMEOUT_S = 5.0  # for another process that holds the file, a backup for instance

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


class SqliteStore:
    """A HistoryStore in the file `path` (`:memory:` for one that forgets), keeping `keep` events a user."""

    def __init__(self, path: str, keep: int) -> None:
        self._path = path
        self._keep = keep
        self._writer = _Worker("anyo-store-write", "BEGIN IMMEDIATE")
        self._reader = self._writer if path == ":memory:" else _Worker("anyo-store-read", "BEGIN")

    async def open(self) -> None:
        """Open or create the file; raises sqlite3.Error, OSError, or ValueError for a file of another schema."""
        if self._path != ":memory:":
            Path(self._path).parent.mkdir(parents=True, exist_ok=True)
        self._writer.start(lambda: _connect(self._path, create=True))
        await self._writer.do(lambda connection: None)
        if self._reader is not self._writer:
            self._reader.start(lambda: _connect(self._path, create=False))

    async def append(self, user_id: str, events: Sequence[Event]) -> Appended:
        """Store all events or none, and return once they are on the disk."""
        return await self._writer.do(lambda connection: _append(connection, user_id, events, self._keep))

    async def history(self, user_id: str) -> list[Event]:
        """Return a user's events, oldest first."""
        return await self._reader.do(lambda connection: _history(connection, user_id))

    async def forget(self, user_id: str) -> int:
        """Delete a user's events; `secure_delete` overwrites them, so a later checkpoint leaves no copy in the file."""
        return await self._writer.do(lambda connection: _forget(connection, user_id))

    async def users(self, query: str, limit: int, offset: int) -> list[UserSummary]:
        """Return users whose id contains `query`, the most recently active first."""
        return await self._reader.do(lambda connection: _users(connection, query, limit, offset))

    async def close(self) -> None:
        """Commit what waits and close the file."""
        await asyncio.to_thread(self._reader.stop)
        await asyncio.to_thread(self._writer.stop)


class _Worker:
    """A thread with a connection; jobs that wait together are committed together."""

    def __init__(self, name: str, begin: str) -> None:
        self._begin = begin
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
                _run_group(connection, self._begin, group)
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


def _run_group(connection: sqlite3.Connection, begin: str, group: list[Job]) -> None:
    """Run jobs in one transaction, each in a savepoint, so that one that fails takes nothing with it."""
    settled: list[tuple[Future[Any], Any, Exception | None]] = []
    connection.execute(begin)
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
        connection.execute("COMMIT")
    except Exception:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    # Only now are the writes on the disk.
    for future, result, failure in settled:
        _settle(future, result, failure)


def _settle(future: Future[Any], result: Any = None, error: Exception | None = None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _connect(path: str, *, create: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_S)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA secure_delete=ON")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if create and version == 0:
            connection.executescript(f"BEGIN;{SCHEMA}PRAGMA user_version={SCHEMA_VERSION};COMMIT;")
        elif version != SCHEMA_VERSION:
            raise ValueError(f"{path} holds schema {version}; this version of the service reads {SCHEMA_VERSION}")
    except BaseException:
        connection.close()
        raise
    return connection


def _append(connection: sqlite3.Connection, user_id: str, events: Sequence[Event], keep: int) -> Appended:
    stored = duplicates = 0
    for event in events:
        if _is_duplicate(connection, user_id, event):
            duplicates += 1
            continue
        connection.execute(
            "INSERT INTO events (user_id, at, item_id, event_id) VALUES (?, ?, ?, ?)",
            (user_id, event.timestamp, event.item_id, event.event_id),
        )
        stored += 1
    connection.execute(
        "DELETE FROM events WHERE seq IN "
        "(SELECT seq FROM events WHERE user_id = ? ORDER BY at DESC, seq DESC LIMIT -1 OFFSET ?)",
        (user_id, keep),
    )
    total, last_at = connection.execute("SELECT COUNT(*), MAX(at) FROM events WHERE user_id = ?", (user_id,)).fetchone()
    connection.execute("INSERT OR REPLACE INTO users VALUES (?, ?, ?)", (user_id, total, last_at))
    return Appended(stored, duplicates, total)


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


def _users(connection: sqlite3.Connection, query: str, limit: int, offset: int) -> list[UserSummary]:
    rows = connection.execute(
        "SELECT user_id, events, last_at FROM users WHERE instr(user_id, ?) > 0 "
        "ORDER BY last_at DESC, user_id LIMIT ? OFFSET ?",
        (query, limit, offset),
    )
    return [UserSummary(*row) for row in rows]
