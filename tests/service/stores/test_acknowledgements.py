"""Under faults, what an answer says of a write is what a read shows afterwards: stored, nothing, or unknown."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError, ReadOnlyError

from service.observability.metrics import STORE_PARTS, Metrics
from service.redis_client.client import LinkFailed, RedisLimits, RedisLink
from service.settings.store_kinds.redis import parse_cache_url
from testing.fake_parts import item_id
from testing.redis_server import RedisServer, redis_server
from testing.running import Running, running

LIMITS = {
    "store_timeout_ms": 10_000, "redis_timeout_ms": 2000, "redis_write_timeout_ms": 2000, "breaker_failures": 1000,
}  # fmt: skip


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis") as server:
        yield server


async def append(anyo: Running, user: str, item: str, event_id: str | None = "e") -> tuple[int, dict[str, Any]]:
    body = {"events": [{"item_id": item, **({} if event_id is None else {"event_id": event_id})}]}
    answer = await anyo.client.post(f"/users/{user}/events", json=body)
    return answer.status_code, answer.json()


async def kept(anyo: Running, user: str) -> list[str]:
    answer = await anyo.client.get(f"/users/{user}")
    return [event["item_id"] for event in answer.json()["events"]] if answer.status_code == 200 else []


def up(anyo: Running) -> dict[str, float | None]:
    return {op: anyo.metric("anyo_store_up", op=op) for op in STORE_PARTS}


# What a key of ours is made to hold, by whom and how it is mended.
KEYS = {
    "users": ["SET", "anyo:1:users", "x"],
    "active": ["SET", "anyo:1:active", "x"],
    "arrivals is a word": ["SET", "anyo:1:arrivals", "word"],
    "arrivals is a list": ["LPUSH", "anyo:1:arrivals", "x"],
    "arrivals is at its end": ["SET", "anyo:1:arrivals", "9223372036854775807"],
    "events": ["SET", "anyo:1:events:u", "x"],
    "ids": ["SET", "anyo:1:ids:u", "x"],
}


@pytest.mark.parametrize("idle", [0, 1000])
@pytest.mark.parametrize("command", KEYS.values(), ids=KEYS)
async def test_a_key_that_holds_something_else_stops_a_script_before_it_writes(
    redis: RedisServer, command: list[str], idle: int
) -> None:
    async with running(store=redis.url, store_idle_seconds=idle, **LIMITS) as anyo:
        assert redis.tell(*command)[0] in "+:"
        status, answer = await append(anyo, "u", item_id(1), event_id=None)
        assert (status, up(anyo)["write"]) == (503, 0)
        said_nothing = "nothing was stored" in answer["error"]["message"]
        assert said_nothing == (answer["error"]["code"] == "store_unavailable")
        assert redis.tell("DEL", command[1]) == ":1"
        assert await kept(anyo, "u") == []
        assert (await append(anyo, "u", item_id(1), event_id=None))[0] == 200
        assert await kept(anyo, "u") == [item_id(1)] and up(anyo)["write"] == 1


async def test_a_script_that_fails_midway_says_that_it_may_be_stored(redis: RedisServer) -> None:
    async with running(store=redis.url, **LIMITS) as anyo:
        # A user of Redis that may do everything but the last command of the script.
        assert redis.tell("ACL", "SETUSER", "default", "-persist") == "+OK"
        status, answer = await append(anyo, "u", item_id(1))
        error = answer["error"]
        assert (status, error["code"]) == (503, "store_outcome_unknown")
        assert "may or may not be stored" in error["message"] and "same event_id" in error["message"]
        status, answer = await append(anyo, "v", item_id(1), event_id=None)
        assert answer["error"]["code"] == "store_outcome_unknown" and "GET /users" in answer["error"]["message"]
        assert redis.tell("ACL", "SETUSER", "default", "+@all") == "+OK"
        assert (await append(anyo, "u", item_id(1)))[0] == 200
        assert await kept(anyo, "u") == [item_id(1)], "sent again with its event_id it is there once"


async def test_a_member_that_is_not_ours_hurts_its_user_only(redis: RedisServer) -> None:
    async with running(store=redis.url, store_history=3, **{**LIMITS, "breaker_failures": 2}) as anyo:
        assert (await append(anyo, "good", item_id(1)))[0] == 200
        assert redis.tell("ZADD", "anyo:1:events:bad", "1", "0000000000000001{{{") == ":1"
        for _ in range(5):
            assert (await anyo.client.get("/users/bad")).status_code == 503
        assert anyo.metric("anyo_breaker_state", part="store_read") == 0
        assert await kept(anyo, "good") == [item_id(1)]
        for number in range(4):  # pushes it out
            assert (await append(anyo, "bad", item_id(number), event_id=f"e{number}"))[0] == 200
        assert await kept(anyo, "bad") == [item_id(number) for number in (1, 2, 3)]


async def test_a_counter_that_went_back_loses_no_event(redis: RedisServer) -> None:
    async with running(store=redis.url, **LIMITS) as anyo:
        for _ in range(2):
            assert (await append(anyo, "u", item_id(1), event_id=None))[0] == 200
        assert redis.tell("SET", "anyo:1:arrivals", "0") == "+OK"
        for number in range(3):
            status, answer = await append(anyo, "u", item_id(1), event_id=None)
            assert (status, answer["stored"], answer["total"]) == (200, 1, 3 + number)
        assert len(await kept(anyo, "u")) == 5


REFUSALS: dict[str, list[list[str]]] = {
    "full": [["CONFIG", "SET", "maxmemory", "1"]],
    "read-only": [["REPLICAOF", "127.0.0.1", "1"]],
    "no scripts": [["SCRIPT", "FLUSH"], ["CONFIG", "SET", "maxmemory", "1"]],
    "too few replicas": [["CONFIG", "SET", "min-replicas-to-write", "3"]],
}


@pytest.mark.parametrize("commands", REFUSALS.values(), ids=REFUSALS)
async def test_what_redis_refuses_beforehand_is_not_stored(redis: RedisServer, commands: list[list[str]]) -> None:
    async with running(store=redis.url, **LIMITS) as anyo:
        assert (await append(anyo, "u", item_id(1)))[0] == 200
        for command in commands:
            assert redis.tell(*command) == "+OK"
        status, answer = await append(anyo, "u", item_id(2), event_id=None)
        assert (status, answer["error"]["code"]) == (503, "store_unavailable")
        assert "nothing was stored" in answer["error"]["message"]
        assert await kept(anyo, "u") == [item_id(1)]
        assert (up(anyo)["read"], up(anyo)["write"]) == (1, 0)


@contextlib.asynccontextmanager
async def deaf_line(port: int) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """A line to Redis; after the call of what it yields, it passes questions on and cuts off before the answer."""
    cut = asyncio.Event()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, back: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if back and cut.is_set():
                    break
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, to_them = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pipe(reader, to_them, False), pipe(theirs, writer, True))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", cut.set
    finally:
        server.close()


async def test_a_line_that_breaks_before_the_answer_leaves_it_open(redis: RedisServer) -> None:
    async with deaf_line(redis.port) as (url, cut), running(store=url, **LIMITS) as anyo:
        assert (await append(anyo, "u", item_id(0), event_id="first"))[0] == 200
        cut()
        for event_id in ("e", None):
            status, answer = await append(anyo, "u", item_id(1), event_id=event_id)
            assert (status, answer["error"]["code"]) == (503, "store_outcome_unknown")
        gone = await anyo.client.delete("/users/v")
        assert gone.json()["error"]["code"] == "store_outcome_unknown" and "send it again" in gone.text
    async with running(store=redis.url, **LIMITS) as anyo:
        assert (await append(anyo, "u", item_id(1), event_id="e"))[1]["duplicates"] == 1
        assert await kept(anyo, "u") == [item_id(0), item_id(1), item_id(1)], (
            "each was stored once, although the first was tried twice"
        )


async def test_a_write_that_takes_too_long_leaves_it_open(redis: RedisServer) -> None:
    async with running(store=redis.url, **{**LIMITS, "redis_write_timeout_ms": 300}) as anyo:
        assert (await append(anyo, "u", item_id(1)))[0] == 200
        assert redis.tell("CLIENT", "PAUSE", "900", "ALL") == "+OK"
        status, answer = await append(anyo, "u", item_id(2), event_id="late")
        assert (status, answer["error"]["code"]) == (503, "store_outcome_unknown")
        end = time.monotonic() + 20
        while (again := await append(anyo, "u", item_id(2), event_id="late"))[0] != 200:
            assert time.monotonic() < end
        assert again[1]["stored"] + again[1]["duplicates"] == 1
        assert await kept(anyo, "u") == [item_id(1), item_id(2)]


async def test_a_full_file_stores_nothing_and_goes_on_reading(tmp_path: Path) -> None:
    async with running(store=f"sqlite:///{tmp_path / 'h.sqlite'}", store_timeout_ms=10_000) as anyo:
        assert (await append(anyo, "u", item_id(1)))[0] == 200
        writer = anyo.service._inner_store._writer  # type: ignore[attr-defined]

        def limit(pages: int) -> Callable[[sqlite3.Connection], Any]:
            return lambda connection: connection.execute(f"PRAGMA max_page_count={pages}").fetchone()

        await writer.do(limit(1))
        for number in range(200):
            status, answer = await append(anyo, f"v{number}", "x" * 200, event_id=None)
            if status != 200:
                break
            assert await kept(anyo, f"v{number}") == ["x" * 200]
        assert (status, answer["error"]["code"]) == (503, "store_unavailable")
        assert "nothing was stored" in answer["error"]["message"]
        assert await kept(anyo, f"v{number}") == []
        assert await kept(anyo, "u") == [item_id(1)]
        assert (up(anyo)["read"], up(anyo)["write"]) == (1, 0), "the alert sees that no event is stored"
        await writer.do(limit(10_000))
        assert (await append(anyo, "u", item_id(2), event_id=None))[0] == 200 and up(anyo)["write"] == 1


@pytest.mark.parametrize("ahead", [0, 300])
async def test_events_from_the_future_are_refused(ahead: int) -> None:
    async with running(store_history=5, max_event_ahead_seconds=ahead) as anyo:
        now = time.time()
        for late in (ahead + 60, 9 * 3600, 1e9):
            events = [{"item_id": item_id(1)}, {"item_id": item_id(2), "timestamp": now + late}]
            answer = await anyo.client.post("/users/u/events", json={"events": events})
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["field"]) == (422, "timestamp_ahead", "events.1.timestamp")
            assert f"at most {ahead} s" in error["message"]
        assert await kept(anyo, "u") == [], "all or none"
        if ahead:
            events = [{"item_id": item_id(1), "timestamp": now + ahead - 60}]
            assert (await anyo.client.post("/users/u/events", json={"events": events})).json()["stored"] == 1


async def test_an_append_answers_what_a_read_shows() -> None:
    async with running(store_history=5) as anyo:
        now = time.time()
        events = [{"item_id": item_id(row), "timestamp": now - row, "event_id": f"e{row}"} for row in range(8)]
        first = (await anyo.client.post("/users/u/events", json={"events": events})).json()
        assert (first["stored"], first["duplicates"], first["too_old"], first["total"]) == (5, 0, 3, 5)
        again = (await anyo.client.post("/users/u/events", json={"events": events})).json()
        assert (again["stored"], again["duplicates"], again["too_old"], again["total"]) == (0, 5, 3, 5)
        assert await kept(anyo, "u") == [item_id(row) for row in (4, 3, 2, 1, 0)]
        assert (await anyo.client.delete("/users/u")).json()["deleted"] == 5 and await kept(anyo, "u") == []


async def test_what_a_second_attempt_meets_says_nothing_of_the_first(redis: RedisServer) -> None:
    """A connection breaks after the write, and the attempt after it meets a Redis that takes no writes any more."""
    link = RedisLink(parse_cache_url(redis.url), "store_write", 2.0, RedisLimits(), Metrics(), turn_s=2.0)
    errors: list[Exception] = []

    async def ask(client: Any) -> None:
        if isinstance(errors[0], ConnectionError):
            await client.set(b"k", b"v")
        raise errors.pop(0)

    try:
        for met, maybe in (([ConnectionError("cut"), ReadOnlyError("READONLY")], True), ([ReadOnlyError("x")], False)):
            errors[:] = met
            with pytest.raises(LinkFailed) as failed:
                await link.call(ask, repeatable=True)
            assert failed.value.maybe_done is maybe and not errors
        assert redis.tell("EXISTS", "k") == ":1"
    finally:
        await link.close()
