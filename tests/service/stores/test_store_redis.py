"""Histories in Redis when Redis fails: slow, stopped, killed, empty, full, talking nonsense, away at the start."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.errors import StartError
from service.observability.metrics import Metrics
from service.settings import SettingsError, load_settings
from service.settings.store_kinds import parse_store_url
from service.stores import open_store
from service.stores.base import Appended, Event, StoreDown
from service.stores.redis import RedisStore
from testing.fake_parts import item_id
from testing.redis_server import RedisServer, free_port, redis_server
from testing.running import Running, running

PATIENCE_S = 20.0
HISTORY = [item_id(3), item_id(8)]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis") as server:
        yield server


def limits(**given: Any) -> dict[str, Any]:
    """Settings for a machine under heavy load: longer limits than by default, but probes in quick succession."""
    return {
        "store_timeout_ms": 10_000,
        "redis_timeout_ms": 400,
        "redis_write_timeout_ms": 1500,
        "breaker_failures": 3,
        "breaker_seconds": 0.1,
        **given,
    }


@contextlib.asynccontextmanager
async def store_at(url: str, **given: Any) -> AsyncIterator[RedisStore]:
    store = RedisStore(parse_store_url(url), load_settings(store=url, **limits(**given)), Metrics())
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def append(anyo: Running, user: str, *items: str, **more: Any) -> int:
    events = [{"item_id": item, **more} for item in items]
    return (await anyo.client.post(f"/users/{user}/events", json={"events": events})).status_code


async def ask(anyo: Running, **body: Any) -> tuple[int, list[str]]:
    answer = await anyo.recommend(**body)
    return answer.status_code, answer.json()["degraded"]


async def explicit_histories_are_answered(anyo: Running) -> None:
    assert await ask(anyo, history=HISTORY) == (200, [])


async def until_healthy(anyo: Running) -> None:
    """Wait until a stored history is read again, and the breakers of reads and writes let calls through."""
    end = time.monotonic() + PATIENCE_S
    while (await ask(anyo, user_id="u"))[1] or await append(anyo, "probe", item_id(1)) != 200:
        assert time.monotonic() < end, "the store did not come back"
        await asyncio.sleep(0.05)
    assert anyo.metric("anyo_store_up", op="read") == anyo.metric("anyo_store_up", op="write") == 1


async def until_open(anyo: Running) -> None:
    """Ask and append until neither is tried any more."""
    end = time.monotonic() + PATIENCE_S
    while any(anyo.metric("anyo_breaker_state", part=part) != 2 for part in ("store_read", "store_write")):
        assert time.monotonic() < end, "the breakers did not open"
        assert await ask(anyo, user_id="u") == (200, ["store"])
        assert await append(anyo, "u", item_id(5)) == 503
        await explicit_histories_are_answered(anyo)


async def test_a_killed_redis_degrades_and_comes_back(redis: RedisServer) -> None:
    async with running(store=redis.url, **limits()) as anyo:
        assert await append(anyo, "u", *HISTORY) == 200
        assert await ask(anyo, user_id="u") == (200, [])
        redis.kill()
        await until_open(anyo)
        assert anyo.metric("anyo_store_up", op="read") == anyo.metric("anyo_store_up", op="write") == 0
        assert anyo.metric("anyo_breaker_opened_total", part="store_read") >= 1
        for path in ("/livez", "/readyz"):
            assert (await anyo.client.get(path)).status_code == 200
        redis.start()  # empty, and without the script
        await until_healthy(anyo)
        assert (await anyo.recommend(user_id="u")).json()["source"] == "popular", "it came back empty"
        assert await append(anyo, "u", HISTORY[0]) == 200
        assert (await anyo.recommend(user_id="u")).json()["source"] == "model"


async def test_a_stopped_redis_costs_a_time_out_and_then_nothing(redis: RedisServer) -> None:
    async with running(
        store=redis.url, **limits(breaker_seconds=2.0, redis_timeout_ms=300, redis_write_timeout_ms=400)
    ) as anyo:
        assert await append(anyo, "u", *HISTORY) == 200
        redis.signal(signal.SIGSTOP)
        await until_open(anyo)
        started = time.monotonic()
        answers = await asyncio.gather(*(anyo.recommend(user_id="u") for _ in range(40)))
        refused = [await append(anyo, "u", item_id(5)) for _ in range(10)]
        assert time.monotonic() - started < 40 * 0.3 / 4, "open: nobody waits for a time-out"
        assert {answer.json()["degraded"][0] for answer in answers} == {"store"} and set(refused) == {503}
        redis.signal(signal.SIGCONT)
        await until_healthy(anyo)
        kept = [event["item_id"] for event in (await anyo.client.get("/users/u")).json()["events"]]
        assert kept[:2] == HISTORY


async def test_a_full_redis_refuses_events_and_goes_on_reading(redis: RedisServer) -> None:
    async with running(store=redis.url, **limits()) as anyo:
        assert await append(anyo, "u", *HISTORY) == 200
        redis.fill(1)
        for _ in range(5):
            answer = await anyo.client.post("/users/u/events", json={"events": [{"item_id": "x", "event_id": "e"}]})
            assert answer.status_code == 503 and "nothing was stored" in answer.json()["error"]["message"]
            assert await ask(anyo, user_id="u") == (200, [])
        assert anyo.metric("anyo_breaker_state", part="store_write") == 0, "it answers, so it is asked"
        assert (anyo.metric("anyo_store_up", op="write"), anyo.metric("anyo_store_up", op="read")) == (0, 1)
        redis.fill(0)
        await until_healthy(anyo)
        kept = [event["item_id"] for event in (await anyo.client.get("/users/u")).json()["events"]]
        assert kept == HISTORY, "not even a part of what was refused"


RUBBISH = {
    "noise": b"\x00\xffHTTP/1.1 400 Bad Request\r\n\r\n",
    "another type": b"+OK\r\n",
    "a number": b":7\r\n",
    "an array of nothing": b"*2\r\n$-1\r\n$-1\r\n",
    "two answers": b"*0\r\n*0\r\n",
    "half an answer": b"$100\r\nabc",
    "an end": b"",
}


@contextlib.asynccontextmanager
async def talking(reply: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers everything but PING with `reply`; yields its URL and what it was asked."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while command := await reader.read(65_536):
                if b"PING" in command:
                    writer.write(b"+PONG\r\n")
                    continue
                asked.append(command)
                writer.write(reply)
                if not reply:
                    break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
    finally:
        server.close()


@pytest.mark.parametrize("reply", RUBBISH.values(), ids=RUBBISH)
async def test_rubbish_is_no_answer(reply: bytes) -> None:
    async with (
        talking(reply) as (url, _),
        running(store=url, **limits(redis_timeout_ms=200, redis_write_timeout_ms=200)) as anyo,
    ):
        for _ in range(4):
            status, degraded = await ask(anyo, user_id="u")
            # "Two answers" looks like an empty history at first; nothing can tell.
            assert status == 200 and (degraded == ["store"] or reply == RUBBISH["two answers"])
            assert await append(anyo, "u", item_id(5)) == 503
            await explicit_histories_are_answered(anyo)
            assert (await anyo.client.get("/users")).status_code == 503


async def test_a_call_is_tried_twice_at_most_and_an_append_without_ids_once() -> None:
    async with talking(b"") as (url, asked), store_at(url, breaker_failures=100) as store:
        asked.clear()
        for call, tries in (
            (store.history("u"), 2),
            (store.append("u", [Event("a", 1, "e")]), 2),
            (store.append("u", [Event("a", 1, "e"), Event("b", 1)]), 1),
            (store.forget("u"), 1),
        ):
            with pytest.raises(StoreDown) as failure:
                await call
            assert failure.value.maybe_done
            assert len(asked) == tries
            asked.clear()


async def test_the_service_starts_without_redis_and_finds_it_later(tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis") as redis:
        redis.kill()
        async with running(store=redis.url, **limits()) as anyo:
            assert all(anyo.metric("anyo_store_up", op=op) == 0 for op in ("read", "write", "list"))
            assert (await anyo.client.get("/readyz")).status_code == 200
            assert await ask(anyo, user_id="u") == (200, ["store"])
            assert await append(anyo, "u", item_id(5)) == 503
            await explicit_histories_are_answered(anyo)
            redis.start()
            await until_healthy(anyo)


async def test_without_any_traffic_the_gauge_shows_that_redis_is_back(redis: RedisServer) -> None:
    redis.kill()
    async with running(store=redis.url, **limits()) as anyo:
        gauges = ("anyo_store_up", "read"), ("anyo_store_up", "write"), ("anyo_store_up", "list")

        def up() -> set[float | None]:
            return {anyo.metric(name, op=op) for name, op in gauges}

        assert up() == {0}
        redis.start()
        end = time.monotonic() + PATIENCE_S
        while up() != {1} and time.monotonic() < end:
            await asyncio.sleep(0.02)
        assert up() == {1}


async def test_a_wrong_password_stops_the_start_and_is_not_shown(tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis") as redis:
        assert redis.tell("CONFIG", "SET", "requirepass", "right") == "+OK"
        for url in (redis.url, redis.url.replace("//", "//:wrong-one@")):
            with pytest.raises(StartError, match="does not let this service in") as refusal:
                async with running(store=url, **limits()):
                    pass
            assert "wrong-one" not in str(refusal.value)
        async with running(store=redis.url.replace("//", "//:right@"), **limits()) as anyo:
            assert await append(anyo, "u", item_id(5)) == 200


async def test_a_busy_event_loop_is_not_mistaken_for_a_slow_redis(redis: RedisServer) -> None:
    async with store_at(redis.url, redis_timeout_ms=200, breaker_failures=1) as store:
        end = time.monotonic() + PATIENCE_S
        while True:  # the first connections may take longer on a busy machine
            with contextlib.suppress(StoreDown):
                await store.append("u", [Event("a", 1)])
                await store.history("u")
                break
            assert time.monotonic() < end
            await asyncio.sleep(0.1)
        for passes in (0, 2, 4, 6, 9):
            asked = asyncio.create_task(store.history("u"))
            for _ in range(passes):
                await asyncio.sleep(0)
            time.sleep(0.35)  # whatever keeps a loop busy: before the question is sent, or while the answer waits
            assert [event.item_id for event in await asked] == ["a"]


async def test_a_burst_of_our_own_is_not_mistaken_for_a_slow_redis(redis: RedisServer) -> None:
    async with store_at(redis.url, redis_connections=4, redis_timeout_ms=200, breaker_failures=1) as store:
        await store.append("u", [Event(f"i{number}", number) for number in range(300)])
        histories = await asyncio.gather(*(store.history("u") for _ in range(1500)))
        assert {len(history) for history in histories} == {300}


async def test_late_answers_reach_nobody_else(redis: RedisServer) -> None:
    users = [f"u{number}" for number in range(12)]
    given = {"redis_connections": 3, "redis_timeout_ms": 150, "breaker_failures": 1_000_000}
    async with store_at(redis.url, **given) as store:
        for user in users:
            await store.append(user, [Event(f"of {user}", 1)])

        async def read(user: str) -> str:
            try:
                events = await store.history(user)
            except StoreDown:
                return "late"
            assert [event.item_id for event in events] == [f"of {user}"]
            return "right"

        assert redis.tell("CLIENT", "PAUSE", "450", "ALL") == "+OK"
        slow = await asyncio.gather(*(read(user) for user in users))
        assert "late" in slow
        end = time.monotonic() + PATIENCE_S
        while "late" in await asyncio.gather(*(read(user) for user in users)):
            assert time.monotonic() < end


async def test_a_socket_file_is_a_way_too() -> None:
    # A folder of its own: the path of a socket may be about a hundred characters long, and a test's is longer.
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder), "--unixsocket", f"{folder}/r"):
        async with store_at(f"unix://{folder}/r?db=3") as store:
            assert await store.append("u", [Event("a", 1)]) == Appended(1, 0, 1)
            assert await store.history("u") == [Event("a", 1)]


async def test_callers_that_leave_take_no_connection_with_them(redis: RedisServer) -> None:
    async with store_at(redis.url, redis_connections=2, redis_timeout_ms=5000) as store:
        await store.append("u", [Event("a", 1)])
        for number in range(60):
            leaving = [asyncio.create_task(store.history("u")) for _ in range(3)]
            for _ in range(number % 12):
                await asyncio.sleep(0)
            for task in leaving:
                task.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
        assert all(await asyncio.gather(*(store.history("u") for _ in range(20))))


async def test_idle_users_expire_if_asked_to(redis: RedisServer) -> None:
    async with store_at(redis.url, store_idle_seconds=1) as store:
        await store.append("gone", [Event("a", 9e9, "e")])
        await asyncio.sleep(2.2)
        assert await store.history("gone") == [] and (await store.users_part("", None, 9)).rows == []
        await store.append("here", [Event("b", 1)])
        await asyncio.sleep(0)
        assert [row.user_id for row in (await store.users_part("", None, 9)).rows] == ["here"]
        await asyncio.sleep(1.2)
        await store.append("next", [Event("b", 1)])
        assert redis.tell("ZCARD", "anyo:1:users") in (":1", ":2"), "an append sweeps expired users out of the list"
    async with store_at(redis.url) as store:
        await store.append("next", [Event("c", 2)])
        await asyncio.sleep(1.5)
        assert len(await store.history("next")) == 2, "without the setting nothing expires"


async def test_acknowledged_events_survive_kill_9_with_appendfsync_always(tmp_path: Path) -> None:
    acknowledged: dict[str, int] = {}
    with redis_server(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always") as redis:
        async with store_at(redis.url, store_history=10_000, redis_write_timeout_ms=5000) as store:

            async def write(user: str) -> None:
                for number in range(10_000):
                    await store.append(user, [Event(f"i{number}", number, f"e{number}"), Event("pair", number)])
                    acknowledged[user] = number + 1

            writers = [asyncio.create_task(write(f"u{number}")) for number in range(6)]
            end = time.monotonic() + PATIENCE_S
            while sum(acknowledged.values()) < 300 and time.monotonic() < end:
                await asyncio.sleep(0.005)
            redis.kill()
            await asyncio.gather(*writers, return_exceptions=True)
        redis.start()
        async with store_at(redis.url, store_history=10_000, redis_timeout_ms=5000) as store:
            assert sum(acknowledged.values()) >= 300
            for user, count in acknowledged.items():
                kept = await store.history(user)
                assert [event.item_id for event in kept][: 2 * count : 2] == [f"i{number}" for number in range(count)]
                assert len(kept) % 2 == 0 and len(kept) <= 2 * count + 2, "whole appends, at most one more"
                last = Event(f"i{count - 1}", count - 1, f"e{count - 1}")
                assert await store.append(user, [last]) == Appended(0, 1, len(kept))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://127.0.0.1:1/0?socket_timeout=9", "socket_timeout"),
        ("redis://127.0.0.1:1/0?max_connections=9", "ANYO_REDIS_"),
    ],
)
def test_limits_in_the_url_are_refused(url: str, says: str) -> None:
    with pytest.raises(StartError, match=says):
        open_store(url, load_settings(), Metrics())


def test_limits_that_contradict_each_other_are_refused() -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    with pytest.raises(SettingsError, match="half of store_timeout_ms"):
        load_settings(store=url, redis_timeout_ms=251)
    with pytest.raises(SettingsError, match="half of deadline_ms"):
        load_settings(store=url, redis_write_timeout_ms=5001)
    load_settings(redis_timeout_ms=600)
