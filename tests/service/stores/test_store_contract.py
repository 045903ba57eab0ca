"""What every store of histories must do: the same tests on SQLite (file and memory) and on a real Redis."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from service.observability.metrics import Metrics
from service.settings import load_settings
from service.settings.store_kinds import kinds
from service.stores import open_store
from service.stores import redis as store_redis
from service.stores import sqlite as store_sqlite
from service.stores.base import Appended, Event, EventConflict, HistoryStore
from service.stores.user_list import UserSummary, list_users
from testing.redis_server import RedisServer, redis_server

KEEP = 5
STORES = {"file": "sqlite", "memory": "sqlite", "redis": "redis"}
"""Stores that the contract is tested on, and their kinds."""
_databases = itertools.count()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis"), "--databases", "64") as server:
        yield server


def opened(url: str) -> HistoryStore:
    settings = load_settings(
        store=url, store_history=KEEP, store_timeout_ms=10_000, redis_timeout_ms=5000, redis_write_timeout_ms=5000
    )
    return open_store(url, settings, Metrics())


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[HistoryStore]:
    if request.param == "redis":
        port = request.getfixturevalue("redis").port
        url = f"redis://127.0.0.1:{port}/{next(_databases)}"
    else:
        url = f"sqlite:///{tmp_path / 'deeper' / 'h.sqlite' if request.param == 'file' else ':memory:'}"
    store = opened(url)
    await store.open()
    yield store
    await store.close()


def event(item: str, at: float, event_id: str | None = None) -> Event:
    return Event(item, at, event_id)


async def items_of(store: HistoryStore, user: str) -> list[str]:
    return [event.item_id for event in await store.history(user)]


async def users_of(store: HistoryStore, query: str, limit: int, offset: int) -> list[UserSummary]:
    return (await list_users(store, query, limit, offset, None, budget_s=60)).rows


def test_every_kind_of_store_is_held_to_the_contract() -> None:
    assert set(STORES.values()) == set(kinds())


async def test_a_history_is_ordered_by_time_then_arrival(store: HistoryStore) -> None:
    await store.append("u", [event("b", 2), event("c", 2)])
    await store.append("u", [event("a", 1)])
    await store.append("other", [event("z", 1)])
    assert await items_of(store, "u") == ["a", "b", "c"]
    assert await store.history("nobody") == []


async def test_an_event_id_is_stored_once(store: HistoryStore) -> None:
    first = await store.append("u", [event("a", 1, "e1"), event("a", 1, "e1"), event("b", 2)])
    again = await store.append("u", [event("a", 9, "e1")])
    assert (first, again) == (Appended(2, 1, 2), Appended(0, 1, 2))
    assert await store.history("u") == [event("a", 1, "e1"), event("b", 2)]
    assert (await store.append("v", [event("a", 1, "e1")])).stored == 1, "another user's event_id is another event"


async def test_a_conflicting_append_stores_nothing_and_hurts_no_neighbour(store: HistoryStore) -> None:
    await store.append("u", [event("a", 1, "e1")])
    bad = store.append("u", [event("new", 2), event("b", 2, "e1")])
    good = [store.append(f"n{number}", [event("x", 1)]) for number in range(20)]
    results = await asyncio.gather(bad, *good, return_exceptions=True)
    assert isinstance(results[0], EventConflict) and "'a'" in str(results[0])
    assert all(result == Appended(1, 0, 1) for result in results[1:])
    assert await items_of(store, "u") == ["a"]


async def test_a_history_is_bounded_and_drops_the_oldest(store: HistoryStore) -> None:
    for number in range(4):
        await store.append("u", [event(f"i{number}-{part}", number) for part in range(2)])
    assert await items_of(store, "u") == ["i1-1", "i2-0", "i2-1", "i3-0", "i3-1"]
    assert (await users_of(store, "", 10, 0))[0].events == 5


async def test_users_are_listed_by_activity_and_forgotten_whole(store: HistoryStore) -> None:
    for user, at in (("anna", 3), ("bob", 9), ("hanna", 5)):
        await store.append(user, [event("x", at)])
    assert [row.user_id for row in await users_of(store, "", 10, 0)] == ["bob", "hanna", "anna"]
    assert [row.user_id for row in await users_of(store, "anna", 1, 1)] == ["anna"]
    assert await store.forget("bob") == 1
    assert await store.forget("bob") == 0
    assert await items_of(store, "bob") == []
    assert await users_of(store, "bob", 10, 0) == []


async def test_odd_ids_are_just_ids(store: HistoryStore) -> None:
    for user in ("a/b", "'; DROP TABLE events; --", "%", "ユーザー", "null\x00byte"):
        await store.append(user, [event(user, 1)])
        assert await items_of(store, user) == [user]
    assert [row.user_id for row in await users_of(store, "%", 10, 0)] == ["%"]


async def test_users_of_the_same_moment_are_listed_by_id_and_in_pages(store: HistoryStore) -> None:
    for number in range(23):
        await store.append(f"u{number:02d}", [event("x", 7.5)])
    await store.append("late", [event("x", 1e9 + 0.125)])
    everyone = await users_of(store, "", 100, 0)
    assert [row.user_id for row in everyone] == ["late", *(f"u{number:02d}" for number in range(23))]
    assert everyone[:2] == [UserSummary("late", 1, 1e9 + 0.125), UserSummary("u00", 1, 7.5)]
    assert [row for start in range(0, 30, 7) for row in await users_of(store, "", 7, start)] == everyone
    assert await users_of(store, "", 5, 100) == []


async def test_an_event_id_is_forgotten_with_its_event(store: HistoryStore) -> None:
    await store.append("u", [event("a", 1, "e1")])
    for number in range(KEEP):
        await store.append("u", [event("x", 10 + number)])
    assert await store.append("u", [event("b", 20, "e1")]) == Appended(1, 0, KEEP)
    await store.forget("u")
    assert await store.append("u", [event("c", 1, "e1")]) == Appended(1, 0, 1)


async def test_an_event_older_than_all_that_is_kept_is_counted_as_such(store: HistoryStore) -> None:
    await store.append("u", [event(f"i{number}", 100 + number) for number in range(KEEP)])
    assert await store.append("u", [event("old", 1, "e-old")]) == Appended(0, 0, KEEP, too_old=1)
    assert "old" not in await items_of(store, "u")
    assert await store.append("u", [event("other", 2, "e-old")]) == Appended(0, 0, KEEP, too_old=1)


APPENDS = {
    "new": [event("a", 50)],
    "more than is kept, rising": [event(f"n{number}", 50 + number) for number in range(KEEP + 3)],
    "more than is kept, falling": [event(f"n{number}", 90 - number) for number in range(KEEP + 3)],
    "older": [event("a", 1), event("b", 2)],
    "older and newer": [event("a", 1), event("b", 60), event("c", 12)],
    "the time of the oldest": [event("a", 10)],
    "known": [event("i1", 11, "e1"), event("i1", 99, "e1")],
    "known, new and older": [event("i1", 11, "e1"), event("a", 70, "ea"), event("b", 1, "eb"), event("a", 70, "ea")],
    "the same twice, older": [event("b", 1, "eb"), event("b", 1, "eb")],
}


@pytest.mark.parametrize("events", APPENDS.values(), ids=APPENDS)
@pytest.mark.parametrize("before", [1, 3, KEEP])
async def test_what_is_acknowledged_is_what_a_read_shows(store: HistoryStore, events: list[Event], before: int) -> None:
    await store.append("u", [event(f"i{number}", 10 + number, f"e{number}") for number in range(1, before + 1)])
    old = await store.history("u")
    appended = await store.append("u", events)
    now = await store.history("u")
    assert appended.stored == len([one for one in now if one not in old])
    assert appended.stored + appended.duplicates + appended.too_old == len(events)
    assert appended.total == len(now) <= KEEP
    assert [row.events for row in await users_of(store, "u", 10, 0)] == [appended.total]
    assert await store.forget("u") == appended.total and await store.history("u") == []


@pytest.mark.parametrize("limit", [1, 3, 7, 200])
@pytest.mark.parametrize("query", ["", "5", "u1"])
async def test_pages_by_cursor_are_the_whole_list(store: HistoryStore, limit: int, query: str) -> None:
    for number in range(40):  # many at the same time, which only their ids tell apart
        await store.append(f"u{number}ü", [event("x", number // 13 + 0.1)])
    expected = [row for row in await users_of(store, "", 100, 0) if query in row.user_id]
    rows: list[UserSummary] = []
    cursor = None
    while True:
        page = await list_users(store, query, limit, 2 if cursor is None else 0, cursor, budget_s=60)
        rows += page.rows
        assert len(page.rows) == limit or page.next is None
        if (cursor := page.next) is None:
            break
    assert rows == expected[2:]


async def test_a_cursor_goes_on_behind_a_user_who_is_gone(store: HistoryStore) -> None:
    for number in range(9):
        await store.append(f"u{number}", [event("x", 5.0)])
    page = await list_users(store, "", 4, 0, None, budget_s=60)
    await store.forget("u3")
    rest = await list_users(store, "", 9, 0, page.next, budget_s=60)
    assert [row.user_id for row in rest.rows] == ["u4", "u5", "u6", "u7", "u8"]


async def test_a_part_of_the_list_looks_at_a_bounded_number_of_users(
    store: HistoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (store_sqlite, store_redis):
        monkeypatch.setattr(module, "USERS_AT_ONCE", 10)
    for number in range(35):
        await store.append(f"u{number:02d}", [event("x", 5.0 if number < 20 else number)])
    place, parts = None, 0
    while True:
        part = await store.users_part("none of them", place, 3)
        assert part.rows == []
        parts += 1
        if (place := part.end) is None:
            break
    assert parts == 4
    # A page that runs out of time says where it goes on, and what is still to be passed over.
    rows, cursor, pages = [], None, 0
    while pages == 0 or cursor is not None:
        page = await list_users(store, "u", 4, 12 if pages == 0 else 0, cursor, budget_s=0)
        rows += page.rows
        cursor, pages = page.next, pages + 1
    assert [row.user_id for row in rows] == [row.user_id for row in (await users_of(store, "", 99, 0))][12:]


async def test_timestamps_come_back_to_the_last_bit(store: HistoryStore) -> None:
    times = [0.0, 1e-7, 1_764_000_000.123456, 253_402_300_799.0, 0.1 + 0.2]
    await store.append("u", [event(f"i{place}", at, f'"e\\{place}\n') for place, at in enumerate(times)])
    assert [(kept.timestamp, kept.event_id) for kept in await store.history("u")] == sorted(
        (at, f'"e\\{place}\n') for place, at in enumerate(times)
    )


async def test_appends_to_one_user_at_once_are_each_counted_once(store: HistoryStore) -> None:
    appended = await asyncio.gather(
        *(store.append("u", [event("a", number % 3, f"e{number % 3}")]) for number in range(60))
    )
    assert sum(one.stored for one in appended) == 3
    assert sum(one.duplicates for one in appended) == 57


async def test_the_stores_agree_on_random_histories(redis: RedisServer) -> None:
    one, other = opened("sqlite:///:memory:"), opened(f"redis://127.0.0.1:{redis.port}/{next(_databases)}")
    await one.open()
    await other.open()
    chance = random.Random(5)
    users = ["u", "v", "ユーザー/1"]
    for _ in range(300):
        user = chance.choice(users)
        if chance.random() < 0.03:
            assert await one.forget(user) == await other.forget(user)
        events = [
            event(f"i{chance.randrange(4)}", chance.randrange(6) / 4, chance.choice([None, f"e{chance.randrange(9)}"]))
            for _ in range(chance.randrange(1, 9))
        ]
        outcomes = await asyncio.gather(one.append(user, events), other.append(user, events), return_exceptions=True)
        assert str(outcomes[0]) == str(outcomes[1]) and type(outcomes[0]) is type(outcomes[1])
        assert await one.history(user) == await other.history(user)
        assert await users_of(one, "", 9, 0) == await users_of(other, "", 9, 0)
    await one.close()
    await other.close()
