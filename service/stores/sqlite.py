"""The embedded store: one SQLite file, nothing to install, histories survive restarts and kill -9.

WAL mode lets reads go on while a write is being forced to disk, and `synchronous=FULL` forces it before the
append returns. One thread writes, one reads histories and one reads lists, each with a connection of its own: a search
through all users delays no history. Appends that arrive while the disk is busy are committed together
(group commit), because the flush is what costs; reads are answered one by one.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence

from service.observability.metrics import Metrics
from service.settings import Settings
from service.settings.store_kinds.sqlite import MEMORY, SqliteUrl
from service.stores.base import Appended, Event, EventConflict
from service.stores.sqlite_file import connect
from service.stores.sqlite_worker import SqliteWorker, do, open_file
from service.stores.user_list import Place, UserPart, UserSummary

SCHEMA_VERSION = 1
USERS_AT_ONCE = 5000  # users that one job of a list looks at: a millisecond or two

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


class SqliteStore:
    """A HistoryStore in the file `path` (`:memory:` for one that forgets), keeping `keep` events a user."""

    def __init__(self, path: str, keep: int) -> None:
        self._path = path
        self._keep = keep
        self._writer = SqliteWorker("anyo-store-write", together=True)
        in_memory = path == MEMORY  # has one connection
        self._reader = self._writer if in_memory else SqliteWorker("anyo-store-read", together=False)
        self._lister = self._writer if in_memory else SqliteWorker("anyo-store-list", together=False)

    async def open(self) -> None:
        """Open or create the file; raises StartError for one that is damaged, not ours, locked or not writable."""
        await open_file(self._path, self._writer, self._connect)
        for worker in {self._reader, self._lister} - {self._writer}:
            worker.start(self._connect)

    async def append(self, user_id: str, events: Sequence[Event]) -> Appended:
        """Store all events or none, and return once they are on the disk."""
        return await do(self._writer, lambda connection: _append(connection, user_id, events, self._keep))

    async def history(self, user_id: str) -> list[Event]:
        """Return a user's events, oldest first."""
        return await do(self._reader, lambda connection: _history(connection, user_id))

    async def forget(self, user_id: str) -> int:
        """Delete a user's events; `secure_delete` overwrites them, so a later checkpoint leaves no copy in the file."""
        return await do(self._writer, lambda connection: _forget(connection, user_id))

    async def users_part(self, query: str, after: Place | None, most: int) -> UserPart:
        """Look at USERS_AT_ONCE users behind `after` and return at most `most` whose id contains `query`."""
        return await do(self._lister, lambda connection: _users(connection, query, after, most))

    def _connect(self) -> sqlite3.Connection:
        return connect(self._path, SCHEMA, SCHEMA_VERSION)

    async def close(self) -> None:
        """Commit what waits and close the file."""
        for worker in (self._lister, self._reader, self._writer):
            await asyncio.to_thread(worker.stop)


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
