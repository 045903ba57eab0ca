"""One way to Redis with short limits: a pool, a time limit for every call, a circuit breaker, a background
probe.

redis-py's own defaults wait 5 s and repeat ten times. Here a call has one limit for everything (connecting, the
answer), is repeated at most once, and only after a broken connection. The limit is not redis-py's: that one
also fires when this process was busy although the answer had long arrived, and then drops the connection. A
call that is past its limit goes on in the background, so that its connection comes back to the pool in order,
until `BACKSTOP` times the limit ends it.

Our own load must not look like a fault of Redis. Calls beyond the number of connections wait for their turn
before their limit begins, and the limit is counted in slices of time, of which those in which the event loop was
busy elsewhere do not count (up to as many again).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from hashlib import sha1
from typing import Any, TypeVar

import structlog
from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, NoScriptError, RedisError, ResponseError

from service.errors import StartError
from service.observability.metrics import Metrics
from service.redis_client.circuit_breaker import Breaker, BreakerOpen
from service.redis_client.errors import missing_files, nothing_written, wrong_setup
from service.settings.store_kinds.redis import RedisSettings, RedisUrl

log = structlog.get_logger(__name__)
T = TypeVar("T")

PREFIX = b"anyo:1:"  # of every key; the number changes with what is stored under it
BACKSTOP = 4  # times the limit, after which a call in the background is ended
SLICES = 5  # of a limit
LOG_INTERVAL_S = 1.0  # between two lines about failing calls of one link


@dataclass(frozen=True, slots=True)
class RedisLimits:
    """Limits of a Redis client: timeouts in seconds, number of connections, and settings of the circuit breaker."""

    read_s: float = 0.05
    write_s: float = 1.0
    connections: int = 32
    failures: int = 5
    cooldown_s: float = 1.0

    @classmethod
    def of(cls, settings: RedisSettings) -> RedisLimits:
        """Return the limits that the settings ask for."""
        return cls(
            read_s=settings.redis_timeout_ms / 1000,
            write_s=settings.redis_write_timeout_ms / 1000,
            connections=settings.redis_connections,
            failures=settings.breaker_failures,
            cooldown_s=settings.breaker_seconds,
        )


class LinkFailed(Exception):
    """Redis did not do what was asked; `maybe_done` says that it nevertheless may have. The message is for the log."""

    def __init__(self, message: str, *, maybe_done: bool, retry_s: float | None = None) -> None:
        super().__init__(message)
        self.maybe_done = maybe_done
        self.retry_s = retry_s


class Script:
    """A Lua script: sent by its hash, and in full to a Redis that does not know it (any more)."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._sha = sha1(source.encode(), usedforsecurity=False).hexdigest()

    async def run(self, redis: Redis, keys: list[bytes], arguments: list[bytes | str | int]) -> Any:
        """Return what the script returns; raises RedisError."""
        try:
            return await redis.evalsha(self._sha, len(keys), *keys, *arguments)
        except NoScriptError:
            # Redis was restarted, or has never seen it; EVAL runs it and keeps it.
            return await redis.eval(self._source, len(keys), *keys, *arguments)


class RedisLink:
    """A pool of connections behind a breaker.

    `part` names it in metrics, `turn_s` is the longest wait for a turn, `on_up` is told when a probe succeeds.
    """

    def __init__(
        self,
        url: RedisUrl,
        part: str,
        limit_s: float,
        limits: RedisLimits,
        metrics: Metrics,
        *,
        turn_s: float,
        on_up: Callable[[], None] = lambda: None,
    ) -> None:
        self.breaker = Breaker(limits.failures, limits.cooldown_s, time.monotonic)
        self._url = url
        self._part = part
        self._limit_s = limit_s
        self._metrics = metrics
        self._turn_s = turn_s
        self._turns = asyncio.Semaphore(limits.connections)
        self._on_up = on_up
        self._redis: Redis = Redis.from_pool(_pool(url, limit_s, limits.connections))
        self._running: set[asyncio.Task[Any]] = set()
        self._prober: asyncio.Task[None] | None = None
        self._logged = -LOG_INTERVAL_S

    async def open(self) -> bool:
        """Return whether Redis answers; else it is probed from now on. Raises StartError if it will never let us in."""
        if (trouble := missing_files(self._url)) is not None:
            raise StartError(trouble)
        try:
            await self._within_limit(self._ping())
        except Exception as error:
            if (trouble := await wrong_setup(self._url, error)) is not None:
                raise StartError(trouble) from error
            log.warning("redis is away", part=self._part, error=str(error) or repr(error))
            self.breaker.trip()
            self._watch()
            return False
        return True

    async def call(self, ask: Callable[[Redis], Coroutine[Any, Any, T]], *, repeatable: bool) -> T:
        """Return what `ask` makes of Redis within the limit; raises LinkFailed.

        `repeatable` says that doing it twice does no harm. `ask` also reads the reply, so that a reply that
        makes no sense counts as a failure of Redis.
        """
        self._enter()
        try:
            async with asyncio.timeout(self._turn_s):
                await self._turns.acquire()
        except TimeoutError:
            raise LinkFailed("too many calls wait for their turn", maybe_done=False) from None
        try:
            return await self._call(ask, repeatable)
        finally:
            self._turns.release()

    async def _call(self, ask: Callable[[Redis], Coroutine[Any, Any, T]], repeatable: bool) -> T:
        # Again: those who waited for their turn while Redis failed need not find that out one by one.
        ticket = self._enter()
        broken: list[Exception] = []
        try:
            result = await self._within_limit(self._tries(ask, repeatable, broken))
        except Exception as error:
            # What Redis itself refuses (out of memory, read-only) it refuses at once: no reason to stop asking.
            answered = isinstance(error, ResponseError)
            self.breaker.record(ticket, answered)
            self._watch()
            # What the second attempt met says nothing of the first, whose answer was lost.
            raise self._failure(error, maybe_done=bool(broken) or not nothing_written(error)) from error
        self.breaker.record(ticket, True)
        self._watch()
        return result

    def _enter(self) -> int:
        try:
            return self.breaker.enter()
        except BreakerOpen as refusal:
            raise LinkFailed(
                f"Redis has failed; it is tried again in {refusal.retry_s:.1f} s",
                maybe_done=False,
                retry_s=refusal.retry_s,
            ) from None

    async def close(self) -> None:
        """End what runs and disconnect."""
        tasks = [*self._running, *([self._prober] if self._prober else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(RedisError, OSError):
            await self._redis.aclose()
            await self._redis.connection_pool.disconnect()

    async def _within_limit(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._forget)
        loop, slice_s = asyncio.get_running_loop(), self._limit_s / SLICES
        left = SLICES
        for _ in range(2 * SLICES):
            before = loop.time()
            await asyncio.wait({task}, timeout=slice_s)
            if task.done():
                return task.result()
            # A slice that took so much longer than asked was taken up by others.
            left -= loop.time() - before < 2 * slice_s
            if not left:
                break
        raise TimeoutError(f"Redis did not answer within {1000 * self._limit_s:g} ms")

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen, so that Python does not complain about it

    async def _tries(self, ask: Callable[[Redis], Awaitable[T]], repeatable: bool, broken: list[Exception]) -> T:
        """Ask, and once more where the connection broke (noted in `broken`) and doing it twice does no harm."""
        try:
            return await ask(self._redis)
        except ConnectionError as error:
            if not repeatable:
                raise
            broken.append(error)
        except (RedisError, OSError):
            raise
        except Exception:
            # Whatever follows on a connection that talks nonsense may be the answer to something else.
            await self._redis.connection_pool.disconnect(inuse_connections=False)
            raise
        return await ask(self._redis)

    async def _ping(self) -> None:
        if await self._redis.ping() is not True:
            raise ConnectionError("PING was answered with something else")

    def _failure(self, error: Exception, *, maybe_done: bool) -> LinkFailed:
        message = str(error) or repr(error)
        if not isinstance(error, RedisError | OSError):
            message = f"Redis answered with what is no answer: {message}"
        now = time.monotonic()
        if now - self._logged >= LOG_INTERVAL_S:
            self._logged = now
            log.warning("redis failed", part=self._part, error=message)
        return LinkFailed(message, maybe_done=maybe_done)

    # -- the breaker -----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Show the breaker's state, and see to it that an open one is probed."""
        self._metrics.breaker_state(self._part).set(("closed", "half_open", "open").index(self.breaker.state))
        if self.breaker.state == "open" and (self._prober is None or self._prober.done()):
            self._metrics.breaker_opened(self._part).inc()
            log.warning("breaker open: redis is not asked until it answers a probe", part=self._part)
            self._prober = asyncio.create_task(self._probe())

    async def _probe(self) -> None:
        while self.breaker.state == "open":
            await asyncio.sleep(self.breaker.probe_in())
            try:
                await self._within_limit(self._ping())
            except Exception:
                self.breaker.probed(False)
            else:
                self.breaker.probed(True)
        log.warning("redis answers again", part=self._part)
        self._watch()
        self._on_up()


def _pool(url: RedisUrl, limit_s: float, connections: int) -> BlockingConnectionPool:
    kinds = {"redis": Connection, "rediss": SSLConnection, "unix": UnixDomainSocketConnection}
    place = {"path": url.socket} if url.socket else {"host": url.host, "port": url.port}
    return BlockingConnectionPool(
        max_connections=connections,
        timeout=limit_s,
        connection_class=kinds[url.scheme],
        **place,
        db=url.db,
        username=url.user,
        password=url.password,
        **url.tls,
        socket_connect_timeout=BACKSTOP * limit_s,
        socket_timeout=BACKSTOP * limit_s,
        retry=Retry(NoBackoff(), 0),
        # No greeting beyond AUTH and SELECT: a reconnection is one round trip.
        protocol=2,
        driver_info=None,
    )
