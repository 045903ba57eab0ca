"""Work that takes long keeps nobody else waiting: searches through users and catalogs, and what is given up."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from pathlib import Path

import pytest

from service.concurrency.searches import WAITING, Searches
from service.errors import DeadlineExceeded, Overloaded
from service.observability.metrics import Metrics
from service.stores.base import Event
from service.stores.guarded import LISTS_AT_ONCE
from service.stores.sqlite import SCHEMA, SqliteStore
from testing.fake_parts import item_id
from testing.running import running

USERS = 60_000


def many_users(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"{SCHEMA}PRAGMA user_version=1;")
        rows = [(f"user-{number:06d}", 1e9 + number) for number in range(USERS)]
        connection.executemany("INSERT INTO users VALUES (?, 1, ?)", rows)
        connection.executemany(
            "INSERT INTO events (user_id, at, item_id) VALUES (?, ?, ?)", [(*row, item_id(1)) for row in rows]
        )
        connection.commit()


async def test_searches_through_all_users_degrade_no_recommendation(tmp_path: Path) -> None:
    many_users(tmp_path / "h.sqlite")
    async with running(store=f"sqlite:///{tmp_path / 'h.sqlite'}") as anyo:
        stop = False

        async def flood() -> set[int]:
            statuses = set()
            while not stop:
                statuses.add((await anyo.client.get("/users?query=zzzz")).status_code)
            return statuses

        floods = [asyncio.create_task(flood()) for _ in range(4)]
        answers = [(await anyo.recommend(user_id="user-000007")).json() for _ in range(15)]
        stop = True
        statuses = set().union(*await asyncio.gather(*floods))
        assert [answer["degraded"] for answer in answers] == [[]] * 15 and statuses <= {200}
        assert all(anyo.metric("anyo_store_up", op=op) == 1 for op in ("read", "list"))


async def test_a_list_that_hangs_keeps_no_history_and_no_append_waiting(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "h.sqlite"), keep=5)
    await store.open()
    gate, reading = threading.Event(), threading.Event()
    hanging = asyncio.ensure_future(store._lister.do(lambda connection: reading.set() or gate.wait()))
    assert await asyncio.to_thread(reading.wait, 20)
    async with asyncio.timeout(20):
        await store.append("u", [Event("a", 1.0)])
        assert len(await store.history("u")) == 1
    gate.set()
    await hanging
    await store.close()


async def test_reads_that_were_queued_together_are_answered_one_by_one(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "h.sqlite"), keep=5)
    await store.open()
    first, second, begun = threading.Event(), threading.Event(), threading.Event()
    blocker = asyncio.ensure_future(store._reader.do(lambda connection: begun.set() or first.wait()))
    assert await asyncio.to_thread(begun.wait, 20)
    history = asyncio.ensure_future(store.history("u"))
    slow = asyncio.ensure_future(store._reader.do(lambda connection: second.wait()))
    given_up = asyncio.ensure_future(store._reader.do(lambda connection: pytest.fail("nobody waits for it")))
    await asyncio.sleep(0)
    given_up.cancel()
    first.set()
    async with asyncio.timeout(20):
        assert await history == []
    assert not slow.done()
    second.set()
    await asyncio.gather(blocker, slow)
    await store.close()


async def test_lists_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    async with running(store=f"sqlite:///{tmp_path / 'h.sqlite'}", store_timeout_ms=10_000) as anyo:
        gate = threading.Event()
        lister = anyo.service._inner_store._lister  # type: ignore[attr-defined]
        blocker = asyncio.ensure_future(lister.do(lambda connection: gate.wait()))
        waiting = [asyncio.ensure_future(anyo.client.get("/users")) for _ in range(LISTS_AT_ONCE)]
        while anyo.service.store._lists < LISTS_AT_ONCE:
            await asyncio.sleep(0.01)
        refused = await anyo.client.get("/users")
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        gate.set()
        assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}
        await blocker
        assert (await anyo.client.get("/users")).status_code == 200


async def test_searches_have_a_thread_and_a_limit() -> None:
    searches, gate = Searches(0.2, Metrics()), threading.Event()
    long_one = asyncio.ensure_future(searches.run(lambda: gate.wait(20)))
    await asyncio.sleep(0)
    others = [asyncio.ensure_future(searches.run(lambda: pytest.fail("begun too late"))) for _ in range(WAITING - 1)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await searches.run(lambda: 1)
    results = await asyncio.gather(long_one, *others, return_exceptions=True)
    assert all(isinstance(result, DeadlineExceeded) for result in results)
    gate.set()
    while searches._waiting:
        await asyncio.sleep(0.01)
    assert await searches.run(lambda: 7) == 7
    searches.close()


@pytest.mark.parametrize("after", ["x", "!!!!", "W10", "WzEsMiwzXQ", "WzEuMCwidSIsLTFd", "ü", "bnVsbA"])
async def test_a_cursor_that_is_none_is_refused(after: str) -> None:
    async with running() as anyo:
        answer = await anyo.client.get("/users", params={"after": after})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "after")


async def test_offset_is_bounded_and_cursors_go_on() -> None:
    async with running() as anyo:
        for number in range(5):
            events = {"events": [{"item_id": "x", "timestamp": number}]}
            assert (await anyo.client.post(f"/users/u{number}/events", json=events)).status_code == 200
        assert (await anyo.client.get("/users?offset=10001")).status_code == 422
        first = (await anyo.client.get("/users?limit=2&offset=1")).json()
        assert [row["user_id"] for row in first["items"]] == ["u3", "u2"]
        rest = (await anyo.client.get("/users", params={"limit": 2, "after": first["next"]})).json()
        assert [row["user_id"] for row in rest["items"]] == ["u1", "u0"] and rest["next"] is None
