"""What every store of histories must do: the same tests on SQLite (file and memory) and on a real Redis."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from service.metrics import Metrics
from service.settings import load_settings
from service.store import Appended, Event, EventConflict, HistoryStore, UserSummary, open_store
from tests.service.redis_server import RedisServer, redis_server

KEEP = 5
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


@pytest.fixture(params=["file", "memory", "redis"])
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
    assert (await store.users("", 10, 0))[0].events == 5


async def test_users_are_listed_by_activity_and_forgotten_whole(store: HistoryStore) -> None:
    for user, at in (("anna", 3), ("bob", 9), ("hanna", 5)):
        await store.append(user, [event("x", at)])
    assert [row.user_id for row in await store.users("", 10, 0)] == ["bob", "hanna", "anna"]
    assert [row.user_id for row in await store.users("anna", 1, 1)] == ["anna"]
    assert await store.forget("bob") == 1
    assert await store.forget("bob") == 0
    assert await items_of(store, "bob") == []
    assert await store.users("bob", 10, 0) == []


async def test_odd_ids_are_just_ids(store: HistoryStore) -> None:
    for user in ("a/b", "'; DROP TABLE events; --", "%", "ユーザー", "null\x00byte"):
        await store.append(user, [event(user, 1)])
        assert await items_of(store, user) == [user]
    assert [row.user_id for row in await store.users("%", 10, 0)] == ["%"]


async def test_users_of_the_same_moment_are_listed_by_id_and_in_pages(store: HistoryStore) -> None:
    for number in range(23):
        await store.append(f"u{number:02d}", [event("x", 7.5)])
    await store.append("late", [event("x", 1e9 + 0.125)])
    everyone = await store.users("", 100, 0)
    assert [row.user_id for row in everyone] == ["late", *(f"u{number:02d}" for number in range(23))]
    assert everyone[:2] == [UserSummary("late", 1, 1e9 + 0.125), UserSummary("u00", 1, 7.5)]
    assert [row for start in range(0, 30, 7) for row in await store.users("", 7, start)] == everyone
    assert await store.users("", 5, 100) == []


async def test_an_event_id_is_forgotten_with_its_event(store: HistoryStore) -> None:
    await store.append("u", [event("a", 1, "e1")])
    for number in range(KEEP):
        await store.append("u", [event("x", 10 + number)])
    assert await store.append("u", [event("b", 20, "e1")]) == Appended(1, 0, KEEP)
    await store.forget("u")
    assert await store.append("u", [event("c", 1, "e1")]) == Appended(1, 0, 1)


async def test_an_event_older_than_all_that_is_kept_is_taken_and_dropped(store: HistoryStore) -> None:
    await store.append("u", [event(f"i{number}", 100 + number) for number in range(KEEP)])
    assert await store.append("u", [event("old", 1, "e-old")]) == Appended(1, 0, KEEP)
    assert "old" not in await items_of(store, "u")
    assert await store.append("u", [event("other", 2, "e-old")]) == Appended(1, 0, KEEP)


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
        assert await one.users("", 9, 0) == await other.users("", 9, 0)
    await one.close()
    await other.close()
