"""Three replicas, a process each, share one Redis behind the shipped HAProxy configuration."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from testing.balancer import balancer
from testing.fake_parts import item_id
from testing.redis_server import redis_server
from testing.running import Process, processes

REPLICAS = 3
PATIENCE_S = 120.0
CALLERS = 6


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[list[Process]]:
    with redis_server(tmp_path / "redis") as redis:
        # Longer limits than by default: the machine that runs this may be busy with other things.
        given = {"store_timeout_ms": 5000, "redis_timeout_ms": 2500, "redis_write_timeout_ms": 5000}
        shared = {"store": redis.url, "cache": redis.url, "shutdown_delay_seconds": 3.0, "user_cache_entries": 1}
        with processes(REPLICAS, tmp_path, **shared, **given) as servers:
            yield servers


def recommend(url: str, **body: Any) -> Any:
    answer = httpx.post(url + "/recommend", json=body, timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text
    return answer.json()


class Load:
    """Callers that ask and append without pause, and count what they get. They repeat an append that failed."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: Counter[str] = Counter()
        self.acknowledged: dict[str, list[str]] = {}
        self.repeated = 0
        self.over = False

    async def run(self) -> None:
        limits = httpx.Limits(max_connections=2 * CALLERS)
        async with httpx.AsyncClient(base_url=self.url, timeout=PATIENCE_S, limits=limits) as client:
            await asyncio.gather(*(self._caller(client, f"u{number}") for number in range(CALLERS)))

    async def _caller(self, client: httpx.AsyncClient, user: str) -> None:
        number = 0
        while not self.over:
            number += 1
            for body in ({"history": [item_id(number % 200), item_id(3)]}, {"user_id": user}):
                answer = await client.post("/recommend", json=body)
                degraded = ",".join(answer.json().get("degraded", ["?"]))
                self.answers[f"{answer.status_code} {degraded}".strip()] += 1
            await self._append(client, user, {"item_id": item_id(number % 200), "event_id": f"e{number}"})

    async def _append(self, client: httpx.AsyncClient, user: str, event: dict[str, str]) -> None:
        while True:
            # A request that is not the first of its connection may also end by the connection being closed.
            with contextlib.suppress(httpx.TransportError):
                if (await client.post(f"/users/{user}/events", json={"events": [event]})).status_code == 200:
                    break
            self.repeated += 1
        self.acknowledged.setdefault(user, []).append(event["event_id"])

    async def more(self, answers: int) -> None:
        """Wait until so many more requests have been answered."""
        goal = self.answers.total() + answers
        async with asyncio.timeout(PATIENCE_S):
            while self.answers.total() < goal:
                await asyncio.sleep(0.02)


async def under_load(url: str, replicas: list[Process]) -> Load:
    """Kill one replica and end another in order while callers are busy."""
    load = Load(url)
    callers = asyncio.create_task(load.run())
    await load.more(100)
    replicas[0].process.kill()
    await load.more(200)
    replicas[1].process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(PATIENCE_S):
        while replicas[1].process.poll() is None:
            await asyncio.sleep(0.02)
    await load.more(100)
    load.over = True
    await callers
    return load


def test_replicas_share_histories_and_vectors_and_losing_one_costs_no_request(
    replicas: list[Process], tmp_path: Path
) -> None:
    one, other, third = (replica.url for replica in replicas)
    events = [{"item_id": item_id(row), "timestamp": row} for row in (5, 9)]
    assert httpx.post(one + "/users/anna/events", json={"events": events}).status_code == 200
    assert [event["item_id"] for event in httpx.get(other + "/users/anna").json()["events"]] == [item_id(5), item_id(9)]
    stored = recommend(other, user_id="anna")
    given = recommend(third, history=[item_id(5), item_id(9)])
    assert stored["items"] == given["items"] and stored["degraded"] == []
    assert given["source"] == "cache", "the vector was computed by another replica"
    httpx.delete(third + "/users/anna", headers={"content-type": "application/json"})
    assert httpx.get(one + "/users/anna").status_code == 404

    with balancer(tmp_path, [one, other, third]) as url:
        assert httpx.get(url + "/metrics").status_code == 404
        load = asyncio.run(under_load(url, replicas))
        assert set(load.answers) == {"200"}, load.answers
        assert replicas[1].process.returncode == 0
        for user, sent in load.acknowledged.items():
            kept = [event["event_id"] for event in httpx.get(f"{url}/users/{user}").json()["events"]]
            assert sorted(kept) == sorted(set(sent)), "each exactly once, though some were sent twice"


def test_an_append_is_not_repeated_behind_the_senders_back(tmp_path: Path) -> None:
    """A replica that takes the request and dies: the sender learns of it, where a recommendation is repeated."""

    async def drive() -> None:
        asked: Counter[str] = Counter()

        async def replica(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dies: bool) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split()[1].decode()
            if path == "/readyz" or not dies:
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
            if path != "/readyz":
                asked[f"{path} {'dies' if dies else 'lives'}"] += 1
            writer.close()

        async def dying(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await replica(reader, writer, True)

        async def living(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await replica(reader, writer, False)

        servers = [await asyncio.start_server(kind, "127.0.0.1", 0) for kind in (dying, living)]
        urls = [f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers]
        running = balancer(tmp_path, urls)
        url = await asyncio.to_thread(running.__enter__)
        try:
            # A connection each: on a second request HAProxy would close it instead of saying 502.
            async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, headers={"connection": "close"}) as client:
                statuses = [(await client.post("/recommend", json={})).status_code for _ in range(10)]
                assert statuses == [200] * 10
                appends = [(await client.post("/users/u/events", json={})).status_code for _ in range(10)]
                assert set(appends) == {200, 502}
                assert asked["/recommend dies"] > 0 and asked["/users/u/events dies"] == appends.count(502)
        finally:
            await asyncio.to_thread(running.__exit__, None, None, None)
            for server in servers:
                server.close()

    asyncio.run(drive())
