"""The cache that replicas share: what is shared, what never is, and what a broken cache may cost."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis import Redis

from service.settings import SettingsError
from testing.fake_parts import DIM, item_id, make_parts
from testing.redis_server import RedisServer, redis_server
from testing.running import Running, running

PATIENCE_S = 20.0
HISTORY = [item_id(1), item_id(2)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as started:
        yield started


@pytest.fixture
def redis(server: RedisServer) -> Iterator[Redis]:
    with Redis(port=server.port) as client:
        client.flushall()
        yield client


def sharing(server: RedisServer, **given: Any) -> dict[str, Any]:
    return {"cache": server.url, "store_timeout_ms": 5000, "redis_timeout_ms": 2000, "breaker_seconds": 0.1, **given}


async def source(anyo: Running, **body: Any) -> str:
    return str((await anyo.recommend(**body)).json()["source"])


def looked_up(anyo: Running, cache: str, result: str) -> float:
    return anyo.metric("anyo_cache_requests_total", cache=cache, result=result)


async def until_keys(redis: Redis, count: int) -> list[bytes]:
    """Wait for what is written in the background."""
    end = time.monotonic() + PATIENCE_S
    while len(keys := sorted(redis.keys())) < count:
        assert time.monotonic() < end, keys
        await asyncio.sleep(0.01)
    return keys


async def test_a_vector_computed_by_one_replica_saves_the_others_the_model(server: RedisServer, redis: Redis) -> None:
    async with running(**sharing(server)) as one, running(**sharing(server)) as other:
        first = await one.recommend(history=HISTORY)
        (key,) = await until_keys(redis, 1)
        assert key.startswith(b"anyo:1:vector:0123456789ab:") and 0 < redis.ttl(key) <= 86_400
        second = await other.recommend(history=HISTORY)
        assert (first.json()["source"], second.json()["source"]) == ("model", "cache")
        assert first.json()["items"] == second.json()["items"] and other.encoder.batches == []
        assert await source(other, history=HISTORY, k=3, exclude=[item_id(7)]) == "cache"
        assert looked_up(other, "shared_vector", "hit") == 1, "the second time its own memory knows it"
        assert looked_up(one, "shared_vector", "miss") == 1 and looked_up(one, "user_vector", "miss") == 1
        assert await source(other, history=HISTORY[::-1]) == "model", "the order is part of a history"


async def test_a_title_is_not_the_item_of_that_name_and_another_version_shares_nothing(
    server: RedisServer, redis: Redis
) -> None:
    next_version = dataclasses.replace(make_parts(), version="ba9876543210")
    async with running(**sharing(server)) as one, running(next_version, **sharing(server)) as swapped:
        await one.recommend(history=HISTORY)
        await until_keys(redis, 1)
        assert await source(one, history=[{"title": item_id(1)}, item_id(2)]) == "model"
        assert await source(swapped, history=HISTORY) == "model"
        assert looked_up(swapped, "shared_vector", "miss") == 1
        await until_keys(redis, 3)


async def test_replicas_of_another_precision_share_nothing(server: RedisServer, redis: Redis) -> None:
    half, quarter = (dataclasses.replace(make_parts(), precision=name) for name in ("bf16", "int8"))
    async with (
        running(**sharing(server)) as one,
        running(half, **sharing(server)) as other,
        running(quarter, **sharing(server)) as third,
    ):
        for number, replica in enumerate((one, other, third), 1):
            assert await source(replica, history=HISTORY) == "model"
            await until_keys(redis, number)


async def test_answers_are_shared_only_if_asked_to_and_only_for_the_very_same_request(
    server: RedisServer, redis: Redis
) -> None:
    on = sharing(server, cache_result_seconds=60)
    same: dict[str, Any] = {"history": HISTORY, "k": 5, "exclude": [item_id(9)], "categories": ["travel", "mystery"]}
    async with running(**on) as one, running(**on) as other, running(**sharing(server)) as without:
        first = await one.recommend(**same)
        keys = await until_keys(redis, 2)
        assert 0 < redis.ttl(next(key for key in keys if b":result:" in key)) <= 60
        second = await other.recommend(**{**same, "categories": ["mystery", "travel", "mystery"]})
        assert second.json()["source"] == "cache" and second.json()["items"] == first.json()["items"]
        assert looked_up(other, "shared_result", "hit") == 1
        assert "search" not in second.json()["timings_ms"], "not even searched"
        for change in ({"k": 6}, {"exclude": []}, {"categories": ["travel"]}, {"exclude_seen": False}):
            changed = await other.recommend(**{**same, **change})
            assert "search" in changed.json()["timings_ms"]
            assert changed.json()["items"] == (await without.recommend(**{**same, **change})).json()["items"]
        assert looked_up(other, "shared_result", "hit") == 1
        assert looked_up(without, "shared_result", "miss") == 0, "off by default"


def sealed(key: bytes, content: bytes) -> bytes:
    return zlib.crc32(content, zlib.crc32(key.removeprefix(b"anyo:1:"))).to_bytes(4, "big") + content


async def test_garbage_in_the_cache_is_counted_and_never_answered(server: RedisServer, redis: Redis) -> None:
    async with running(**sharing(server)) as one:
        await one.recommend(history=[item_id(100)])
        of_another_history = redis.get((await until_keys(redis, 1))[0])
        redis.flushall()
    async with running(**sharing(server, cache_result_seconds=60)) as one:
        right = (await one.recommend(history=HISTORY)).json()["items"]
    result, vector = await until_keys(redis, 2)
    good_vector, good_result = redis.get(vector), redis.get(result)
    assert isinstance(good_vector, bytes) and isinstance(good_result, bytes)
    bad_vectors = [
        b"",
        b"xyz",
        good_vector[:-4],
        good_vector[:9] + bytes([good_vector[9] ^ 1]) + good_vector[10:],
        good_result,
        of_another_history,
        sealed(vector, np.ones(DIM + 1, np.float32).tobytes()),
        sealed(vector, np.full(DIM, np.nan, np.float32).tobytes()),
    ]
    bad_results = [
        b"",
        good_vector,
        good_result[:-1],
        sealed(result, b"{"),
        sealed(result, b'[["item-0001"],["much"]]'),
        sealed(result, b'[["item-0001"],[]]'),
        sealed(result, b'[["of another catalog"],[0.5]]'),
        sealed(result, b'[[["item-0001"]],[0.5]]'),
    ]
    for name, key, good, bad in (
        ("shared_vector", vector, good_vector, bad_vectors),
        ("shared_result", result, good_result, bad_results),
    ):
        for value in bad:
            redis.flushall()
            redis.set(key, value)
            async with running(**sharing(server, cache_result_seconds=60)) as anyo:
                answer = await anyo.recommend(history=HISTORY)
                assert (answer.status_code, answer.json()["source"]) == (200, "model"), (name, value)
                assert answer.json()["items"] == right
                assert looked_up(anyo, name, "garbage") == 1 and looked_up(anyo, name, "hit") == 0
                while redis.get(key) != good:
                    await asyncio.sleep(0.01)  # the next one finds it mended


async def test_a_cache_that_is_away_costs_a_time_out_and_then_nothing(tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis") as own:
        given = sharing(own, redis_timeout_ms=300, breaker_failures=3, breaker_seconds=1.0, user_cache_entries=0)
        async with running(**given) as anyo:
            assert await source(anyo, history=HISTORY) == "model"
            own.signal(signal.SIGSTOP)
            end = time.monotonic() + PATIENCE_S
            while anyo.metric("anyo_breaker_state", part="cache") != 2:
                assert await source(anyo, history=HISTORY) == "model" and time.monotonic() < end
            started = time.monotonic()
            for row in range(40):
                assert await source(anyo, history=[item_id(row)]) == "model"
            assert time.monotonic() - started < 40 * 0.3 / 2
            assert looked_up(anyo, "shared_vector", "unavailable") >= 40
            own.signal(signal.SIGCONT)
            while await source(anyo, history=HISTORY) != "cache":
                assert time.monotonic() < end
                await asyncio.sleep(0.05)
            own.kill()
            assert await source(anyo, history=[item_id(77)]) == "model"
            own.start()
            own.fill(1)  # reads go on, writes are refused
            while not looked_up(anyo, "shared_vector", "miss"):
                assert time.monotonic() < end
                await anyo.recommend(history=HISTORY)
            assert (await anyo.client.get("/readyz")).status_code == 200


async def test_a_service_starts_without_its_cache_but_not_with_a_wrong_url(tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis") as own:
        own.kill()
        async with running(cache=own.url) as anyo:
            assert await source(anyo, history=HISTORY) == "model"
    for url in ("memcached://x", "redis://x?socket_timeout=3"):
        with pytest.raises(SettingsError, match="ANYO_CACHE"):
            async with running(cache=url):
                pass


async def test_a_shared_answer_is_not_given_once_an_item_of_it_is_withdrawn(server: RedisServer, redis: Redis) -> None:
    items = {"item_store": "sqlite:///:memory:", "cache_result_seconds": 60}
    async with running(**sharing(server, **items)) as anyo:
        best = (await anyo.recommend(history=HISTORY)).json()["items"][0]["item_id"]
        await until_keys(redis, 2)
        assert looked_up(anyo, "shared_result", "hit") == 0
        assert (await anyo.recommend(history=HISTORY)).json()["items"][0]["item_id"] == best
        assert looked_up(anyo, "shared_result", "hit") == 1
        assert (await anyo.client.patch(f"/items/{best}", json={"state": "hidden"})).status_code == 200
        found = (await anyo.recommend(history=HISTORY, k=200)).json()["items"]
        assert best not in [item["item_id"] for item in (await anyo.recommend(history=HISTORY)).json()["items"]]
        assert len(found) == 197 and looked_up(anyo, "shared_result", "hit") == 1
