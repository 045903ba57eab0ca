"""Users' histories in the embedded store."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from service.errors import Conflict, Overloaded, StartError, StoreUnavailable
from service.observability.metrics import Metrics
from service.settings import load_settings
from service.stores import open_store
from service.stores.base import Appended, Event, EventConflict, HistoryStore
from service.stores.guarded import GuardedStore
from service.stores.sqlite import SCHEMA, SqliteStore
from service.stores.sqlite_worker import MAX_WAITING
from service.stores.user_list import Place, UserPart


def event(item: str, at: float, event_id: str | None = None) -> Event:
    return Event(item, at, event_id)


async def items_of(store: HistoryStore, user: str) -> list[str]:
    return [event.item_id for event in await store.history(user)]


async def test_histories_survive_a_restart(tmp_path: Path) -> None:
    for item in ("a", "b"):
        store = SqliteStore(str(tmp_path / "h.sqlite"), keep=5)
        await store.open()
        await store.append("u", [event(item, 1)])
        await store.close()
    store = SqliteStore(str(tmp_path / "h.sqlite"), keep=5)
    await store.open()
    assert await items_of(store, "u") == ["a", "b"]
    await store.close()


async def test_many_appends_at_once_all_arrive(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "h.sqlite"), keep=1000)
    await store.open()
    await asyncio.gather(*(store.append(f"u{number % 7}", [event(str(number), number)]) for number in range(700)))
    for user in range(7):
        assert await items_of(store, f"u{user}") == [str(number) for number in range(user, 700, 7)]
    await store.close()


async def test_a_file_of_another_schema_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "h.sqlite")
    connection.executescript(SCHEMA + "PRAGMA user_version=99")
    connection.close()
    store = SqliteStore(str(tmp_path / "h.sqlite"), keep=5)
    with pytest.raises(StartError, match="schema 99"):
        await store.open()
    await store.close()


async def test_the_disk_is_told_to_keep_what_is_acknowledged(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "h.sqlite"), keep=5)
    await store.open()
    modes = await store._writer.do(
        lambda connection: [
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
        ]
    )
    assert modes == ["wal", 2]
    await store.close()


async def test_a_store_that_is_behind_refuses_more(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "h.sqlite"), keep=5)
    await store.open()
    gate = threading.Event()
    blocker = asyncio.ensure_future(store._writer.do(lambda connection: gate.wait()))
    await asyncio.sleep(0.05)
    waiting = [asyncio.ensure_future(store.append("u", [event("a", 1)])) for _ in range(MAX_WAITING)]
    await asyncio.sleep(0.05)
    with pytest.raises(Overloaded):
        await store.append("u", [event("a", 1)])
    gate.set()
    await asyncio.gather(blocker, *waiting)
    await store.close()


@pytest.mark.parametrize("url", ["redis:", "mysql://me:secret@host/", "sqlite:h.sqlite", "sqlite:///", "nonsense"])
def test_an_unknown_url_is_refused_with_what_is_known(url: str) -> None:
    with pytest.raises(StartError, match=r"sqlite:///PATH") as refusal:
        open_store(url, load_settings(), Metrics())
    assert "secret" not in str(refusal.value)


class BadStore(SqliteStore):
    """A store with faults: slow, broken."""

    fault: Exception | None = None

    async def history(self, user_id: str) -> list[Event]:
        if self.fault is not None:
            raise self.fault
        await asyncio.sleep(5)
        return []

    async def append(self, user_id: str, events: Sequence[Event]) -> Appended:
        raise EventConflict("used before")

    async def users_part(self, query: str, after: Place | None, most: int) -> UserPart:
        return UserPart([], None)


async def test_the_guard_turns_faults_into_one_error_and_shows_them() -> None:
    bad, metrics = BadStore(":memory:", 5), Metrics()
    guarded = GuardedStore(bad, metrics, read_timeout_s=0.05, write_timeout_s=1)

    def up(op: str) -> float | None:
        return metrics.registry.get_sample_value("anyo_store_up", {"op": op})

    assert await guarded.users("", 1) == ([], None) and up("list") == 1
    with pytest.raises(StoreUnavailable, match=r"0\.05 s"):
        await guarded.history("u")
    assert (up("read"), up("write"), up("list")) == (0, 1, 1)
    bad.fault = sqlite3.OperationalError("disk I/O error")
    with pytest.raises(StoreUnavailable):
        await guarded.history("u")
    with pytest.raises(Conflict, match="used before"):
        await guarded.append("u", [])
    await guarded.users("", 1)
    assert up("read") == 0, "what another operation does says nothing about this one"
