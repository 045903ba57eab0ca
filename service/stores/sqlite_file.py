"""Opens the SQLite file of the store, and says in one sentence why it cannot be used.

A file that is damaged, belongs to something else or cannot be written is found at the start, and not by the first user.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path

import structlog

from service.settings.store_kinds.sqlite import MEMORY

log = structlog.get_logger(__name__)

BUSY_TIMEOUT_S = 5.0  # for another process that holds the file, a backup for instance
AGAIN_S = 0.01  # between two tries
PRIVATE = 0o600
CHECK_S = 10.0  # a check that takes longer is left off, and the log says so
CHECK_STEPS = 100_000  # of SQLite's machine, between two looks at the clock


class Unusable(ValueError):
    """A file that is no store of this service, or a damaged one."""


def connect(path: str, schema: str, version: int) -> sqlite3.Connection:
    """Return a connection to a file with `schema` in it, which an empty file gets; raises sqlite3.Error, Unusable."""
    if path != MEMORY:
        with contextlib.suppress(OSError):  # a new file is for its owner alone; SQLite's other files follow it
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE))
    connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_S)
    try:
        # Before anything is set: a file of something else stays as it is.
        empty = _checked(connection, schema, version)
        _log_ahead(connection)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA secure_delete=ON")
        if empty:
            _fill(connection, schema, version)
    except BaseException:
        connection.close()
        raise
    return connection


def check(connection: sqlite3.Connection) -> None:
    """Raise Unusable if the file is damaged, as far as SQLite finds out in CHECK_S."""
    end = time.monotonic() + CHECK_S
    connection.set_progress_handler(lambda: time.monotonic() > end, CHECK_STEPS)
    try:
        found = [row[0] for row in connection.execute("PRAGMA quick_check(1)")]
    except sqlite3.OperationalError as error:
        if time.monotonic() <= end:
            raise
        log.warning("the store's file is large: not all of it was checked", seconds=CHECK_S, error=str(error))
        return
    finally:
        connection.set_progress_handler(None, 0)
    if found != ["ok"]:
        first = str(found[0]).replace("\n", " ") if found else "no answer"
        raise Unusable(f"it is damaged ({first}); restore it from a backup, or name another file")


def why_not_opened(path: str, error: Exception) -> str:
    """Return one sentence about a file that could not be opened."""
    message = str(error)
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        message = {
            sqlite3.SQLITE_NOTADB: "it is no SQLite database; name another file",
            sqlite3.SQLITE_CORRUPT: f"it is damaged ({error}); restore it from a backup, or name another file",
            sqlite3.SQLITE_BUSY: f"another process has held it for {BUSY_TIMEOUT_S:g} s",
            sqlite3.SQLITE_LOCKED: "another process holds it",
            sqlite3.SQLITE_READONLY: "it may not be written",
            sqlite3.SQLITE_FULL: "the disk is full",
            sqlite3.SQLITE_CANTOPEN: "it is a folder" if Path(path).is_dir() else "it may not be opened or made",
        }.get(code, message)
    elif isinstance(error, OSError):
        message = f"its folder cannot be made: {error.strerror}"
    return f"{path}: {message}"


def _checked(connection: sqlite3.Connection, schema: str, version: int) -> bool:
    """Return whether the file is empty; raises Unusable for one of something else."""
    # One transaction: another process that starts at the same moment may be filling the file.
    connection.execute("BEGIN")
    try:
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        empty = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0] == 0
        if not empty or found:
            _refuse_others(connection, found, schema, version)
        return empty and not found
    finally:
        if connection.in_transaction:
            connection.execute("COMMIT")


def _log_ahead(connection: sqlite3.Connection) -> None:
    """Switch to the write-ahead log; SQLite does not wait for others there, as it does elsewhere."""
    end = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(AGAIN_S)


def _fill(connection: sqlite3.Connection, schema: str, version: int) -> None:
    """Write the schema, unless another process has done so since."""
    try:
        connection.executescript(f"BEGIN IMMEDIATE;{schema}PRAGMA user_version={version};COMMIT;")
    except sqlite3.OperationalError:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if _checked(connection, schema, version):
            raise


def _refuse_others(connection: sqlite3.Connection, found: int, schema: str, version: int) -> None:
    if found == 0 or not _is_like(connection, schema):
        raise Unusable("it is a database of something else; name another file")
    if found != version:
        raise Unusable(f"it holds schema {found}; this version of the service reads {version}")


def _is_like(connection: sqlite3.Connection, schema: str) -> bool:
    """Return whether the tables of `schema` are there with at least its columns."""
    with_schema = sqlite3.connect(":memory:")
    try:
        with_schema.executescript(schema)
        tables = [row[0] for row in with_schema.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return all(_columns(with_schema, name) <= _columns(connection, name) for name in tables)
    finally:
        with_schema.close()


def _columns(connection: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
