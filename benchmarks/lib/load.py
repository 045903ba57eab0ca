"""A small open-loop load generator: HTTP/1.1 over kept connections, Poisson arrivals, latency from the due moment.

Open loop: requests are sent when a Poisson process says so, whether earlier ones have been answered or not, as users
do. Latency counts from that moment, so that a generator or a server that falls behind cannot hide it.
"""

from __future__ import annotations

import asyncio
import random
import re
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding: *chunked")
LAST_CHUNK = b"\r\n0\r\n\r\n"  # JSON holds no line break of this kind, so it cannot stand in a body
CLOSE = re.compile(rb"(?i)\r\nconnection: *close")
REFUSED_PAUSE_S = 0.1
NO_ANSWER = 0  # status of a request whose connection broke, or that was not answered in time


@dataclass(frozen=True, slots=True)
class Answer:
    """When a request was due (seconds after the start), how long its answer took from then, and its status.

    `late` is how much later than due the generator came to send it: part of `seconds`, and not the service's fault.
    """

    due: float
    seconds: float
    status: int
    late: float = 0.0


@dataclass(slots=True)
class Load:
    """Outcome of a run."""

    answers: list[Answer] = field(default_factory=list)
    seconds: float = 0.0
    generator_cpu_s: float = 0.0
    server_cpu_s: float = 0.0

    def statuses(self) -> dict[str, int]:
        """Return how often each status came."""
        return {str(status): count for status, count in sorted(Counter(a.status for a in self.answers).items())}

    def latencies(self, *statuses: int) -> list[float]:
        """Return the latencies of answers with these statuses, ascending."""
        return sorted(answer.seconds for answer in self.answers if answer.status in statuses)


def percentile(ascending: Sequence[float], share: float) -> float | None:
    """Return a percentile of sorted values, or None without any."""
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))] if ascending else None


def milliseconds(seconds: float | None) -> float | None:
    """Return seconds as milliseconds for people."""
    return None if seconds is None else round(1000 * seconds, 2)


def request(host: str, path: str, body: bytes, *, method: str = "POST") -> bytes:
    """Return a request as it goes over the wire."""
    head = (
        f"{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    )
    return head.encode() + b"\r\n" + body


class _Connection(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._data = b""
        self._done: Callable[[int], None] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, data: bytes, done: Callable[[int], None]) -> None:
        assert self._transport is not None
        self._done = done
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._data[:end]
        if CHUNKED.search(head):
            if (last := self._data.find(LAST_CHUNK, end + 2)) < 0:
                return
            whole = last + len(LAST_CHUNK)
        else:
            found = LENGTH.search(head)
            whole = end + 4 + (int(found.group(1)) if found else 0)
        if len(self._data) < whole:
            return
        self._data = self._data[whole:]
        if CLOSE.search(head):
            assert self._transport is not None
            self._transport.close()
        else:
            self._pool.free.append(self)
        self._finish(int(head[9:12]))

    def connection_lost(self, error: Exception | None) -> None:
        if self in self._pool.free:
            self._pool.free.remove(self)
        self._finish(NO_ANSWER)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _finish(self, status: int) -> None:
        if (done := self._done) is not None:
            self._done = None
            done(status)


class Pool:
    """Connections to one address, opened when none is free."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self.host, self.port = address.hostname or "127.0.0.1", address.port or 80
        self.free: list[_Connection] = []
        self._all: list[_Connection] = []

    async def send(self, data: bytes) -> int:
        """Send a request over a free connection; returns the status, NO_ANSWER if the connection breaks."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        if self.free:
            connection = self.free.pop()
        else:
            try:
                _, connection = await loop.create_connection(lambda: _Connection(self), self.host, self.port)
            except OSError:
                return NO_ANSWER
            self._all.append(connection)

        def done(status: int) -> None:
            if not future.done():
                future.set_result(status)

        connection.send(data, done)
        return await future

    def close(self) -> None:
        """Close every connection."""
        for connection in self._all:
            connection.close()


async def open_loop(
    pool: Pool,
    requests: Iterator[bytes],
    *,
    rate: float,
    seconds: float,
    rng: random.Random,
    patience_s: float = 30.0,
    stop: Callable[[], bool] = lambda: False,
) -> Load:
    """Offer `rate` requests a second for `seconds`, then at most `patience_s` for the last answers."""
    load, started, cpu = Load(), time.monotonic(), _cpu()
    tasks: set[asyncio.Task[None]] = set()

    async def one(due: float, data: bytes) -> None:
        late = time.monotonic() - started - due
        try:
            async with asyncio.timeout(patience_s):
                status = await pool.send(data)
        except TimeoutError:
            status = NO_ANSWER
        load.answers.append(Answer(due, time.monotonic() - started - due, status, late))

    due = 0.0
    while (due := due + rng.expovariate(rate)) < seconds and not stop():
        if (wait := due - (time.monotonic() - started)) > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(one(due, next(requests)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    load.seconds = time.monotonic() - started
    load.generator_cpu_s = _cpu() - cpu
    await asyncio.gather(*tasks)
    return load


async def closed_loop(
    pool: Pool, requests: Iterator[bytes], *, clients: int, seconds: float, patience_s: float | None = None
) -> Load:
    """Let `clients` ask one after the other for `seconds`: what the service manages when it is never without work.

    One that is refused, or not answered within `patience_s`, waits a moment before it asks again.
    """
    load, started, cpu = Load(), time.monotonic(), _cpu()

    async def client() -> None:
        while (due := time.monotonic() - started) < seconds:
            try:
                async with asyncio.timeout(patience_s):
                    status = await pool.send(next(requests))
            except TimeoutError:
                status = NO_ANSWER
            load.answers.append(Answer(due, time.monotonic() - started - due, status))
            if status in (NO_ANSWER, 429, 503):
                await asyncio.sleep(REFUSED_PAUSE_S)

    await asyncio.gather(*(client() for _ in range(clients)))
    load.seconds = time.monotonic() - started
    load.generator_cpu_s = _cpu() - cpu
    return load


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
