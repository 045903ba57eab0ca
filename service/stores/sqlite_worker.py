"""Threads with a SQLite connection each, which run jobs: together in one transaction, or one by one.

Writes that arrive while the disk is busy are committed together (group commit), because the flush is what costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import structlog

from service.errors import Overloaded, StartError
from service.settings.store_kinds.sqlite import MEMORY
from service.stores.base import StoreDown
from service.stores.sqlite_file import check, why_not_opened

log = structlog.get_logger(__name__)
T = TypeVar("T")
Job = tuple[Callable[[sqlite3.Connection], Any], "Future[Any]"]

GROUP = 256  # most jobs in one commit
MAX_WAITING = 4096  # jobs that may wait for a connection


class CommitFailed(sqlite3.OperationalError):
    """The disk refused a commit at its end: what it wrote may or may not come back after a crash."""


async def open_file(path: str, writer: SqliteWorker, connect: Callable[[], sqlite3.Connection]) -> None:
    """Open or create the file of a store, and start the thread that writes to it.

    Raises:
        StartError: it is damaged, not ours, locked or not writable.
    """
    try:
        if path != MEMORY:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        writer.start(connect)
        await writer.do(lambda connection: None)  # a transaction that could write
        await writer.do(check)
    except (sqlite3.Error, OSError, ValueError) as error:
        raise StartError(why_not_opened(path, error)) from error


async def do(worker: SqliteWorker, work: Callable[[sqlite3.Connection], T]) -> T:
    """Run `work` on a worker; raises StoreDown where SQLite fails."""
    try:
        return await worker.do(work)
    except sqlite3.Error as error:
        log.error("store failed", error=repr(error))
        raise StoreDown(str(error), maybe_done=isinstance(error, CommitFailed)) from error


class SqliteWorker:
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
        if not future.set_running_or_notify_cancel():  # it was cancelled
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
