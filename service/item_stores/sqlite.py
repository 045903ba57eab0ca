"""Items in a SQLite file, which several processes of one machine may share: see `service/stores/sqlite.py`."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence

from service.item_stores.base import Changes, ItemContent, ItemWrite, StoredItem, Written, never_stored
from service.observability.metrics import Metrics
from service.settings import Settings
from service.settings.store_kinds.sqlite import MEMORY, SqliteUrl
from service.stores.sqlite_file import connect
from service.stores.sqlite_worker import SqliteWorker, do, open_file

SCHEMA_VERSION = 1
# Items are never taken out, so the highest number is that of the newest change.
SCHEMA = """
CREATE TABLE items (
    item_id TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    number  INTEGER NOT NULL,
    content BLOB NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX items_by_number ON items (number);
"""
COLUMNS = "item_id, content, version, number"


def open_url(place: SqliteUrl, settings: Settings, metrics: Metrics) -> SqliteItemStore:
    """Return the (not yet opened) store in a file."""
    return SqliteItemStore(place.path)


class SqliteItemStore:
    """An ItemStore in the file `path` (`:memory:` for one that forgets)."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._writer = SqliteWorker("anyo-items-write", together=True)
        self._reader = self._writer if path == MEMORY else SqliteWorker("anyo-items-read", together=False)

    async def open(self) -> None:
        """Open or create the file; raises StartError for one that is damaged, not ours, locked or not writable."""
        await open_file(self._path, self._writer, self._connect)
        if self._reader is not self._writer:
            self._reader.start(self._connect)

    async def write(self, writes: Sequence[ItemWrite]) -> list[Written]:
        """Carry out writes, and return once they are on the disk."""
        return await do(self._writer, lambda connection: [_write(connection, write) for write in writes])

    async def get(self, item_id: str) -> StoredItem | None:
        """Return an item; None where it was never changed."""
        return await do(self._reader, lambda connection: _get(connection, item_id))

    async def changes(self, after: int, most: int) -> Changes:
        """Return at most `most` changes after a number."""
        return await do(self._reader, lambda connection: _changes(connection, after, most))

    async def close(self) -> None:
        """Commit what waits and close the file."""
        for worker in (self._reader, self._writer):
            await asyncio.to_thread(worker.stop)

    def _connect(self) -> sqlite3.Connection:
        return connect(self._path, SCHEMA, SCHEMA_VERSION)


def _item(row: tuple[str, bytes, int, int]) -> StoredItem:
    return StoredItem(row[0], ItemContent.from_json(row[1]), row[2], row[3])


def _get(connection: sqlite3.Connection, item_id: str) -> StoredItem | None:
    row = connection.execute(f"SELECT {COLUMNS} FROM items WHERE item_id = ?", (item_id,)).fetchone()  # noqa: S608
    return None if row is None else _item(row)


def _newest(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT COALESCE(MAX(number), 0) FROM items").fetchone()[0])


def _write(connection: sqlite3.Connection, write: ItemWrite) -> Written:
    before = _get(connection, write.item_id) or never_stored(write.item_id)
    content = write.content.to_json()
    if before.version and before.content.to_json() == content:
        return Written(before, "same")
    if write.expected not in (None, before.version):
        return Written(before, "stale")
    now = StoredItem(write.item_id, write.content, before.version + 1, _newest(connection) + 1)
    connection.execute(
        "INSERT OR REPLACE INTO items (item_id, version, number, content) VALUES (?, ?, ?, ?)",
        (now.item_id, now.version, now.number, content),
    )
    return Written(now, "changed")


def _changes(connection: sqlite3.Connection, after: int, most: int) -> Changes:
    rows = connection.execute(
        f"SELECT {COLUMNS} FROM items WHERE number > ? ORDER BY number LIMIT ?",  # noqa: S608
        (after, most),
    ).fetchall()
    return Changes([_item(row) for row in rows], _newest(connection))
