"""Histories in Redis, for several replicas: one sorted set a user, every change one script.

    anyo:1:events:USER   sorted set, by timestamp; a member is the number of its arrival (16 digits, so that
                         equal timestamps sort by arrival), then ["item id", "event id" or null] as JSON
    anyo:1:ids:USER      hash, event id → item id, of the events that are kept
    anyo:1:users         sorted set of all users, by minus the newest timestamp
    anyo:1:active        sorted set of all users, by the time of their last append (only where users expire)
    anyo:1:arrivals      counter behind the numbers of arrival

The keys of one script lie in different slots, so this is for one Redis (with replicas, if you like), not for Redis
Cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

import orjson
import structlog
from redis.asyncio import Redis

from service.observability.metrics import Metrics
from service.redis_client.client import PREFIX, LinkFailed, RedisLimits, RedisLink
from service.redis_client.errors import BadData, NothingWritten
from service.settings import Settings
from service.settings.store_kinds.redis import RedisSettings, RedisUrl
from service.stores.base import Appended, Event, EventConflict, StoreDown
from service.stores.redis_scripts import APPEND, FORGET, LIST
from service.stores.user_list import Place, UserPart, UserSummary

log = structlog.get_logger(__name__)
T = TypeVar("T")

EVENTS, IDS = PREFIX + b"events:", PREFIX + b"ids:"
USERS, ACTIVE, ARRIVALS = PREFIX + b"users", PREFIX + b"active", PREFIX + b"arrivals"
ARRIVAL_DIGITS = 16
USERS_AT_ONCE = 1000  # users that one script looks at: about a millisecond during which Redis does nothing else
SWEEP = 20  # expired users that an append clears out of the lists


def open_url(place: RedisUrl, settings: Settings, metrics: Metrics) -> RedisStore:
    """Return the (not yet opened) store in a Redis."""
    return RedisStore(place, settings, metrics)


class RedisStore:
    """A HistoryStore in the Redis at `place`. Histories, lists and writes have a link each: writes may wait for a disk,
    lists look at many users, and a breaker that one of them opens is no reason not to try the others."""

    def __init__(self, place: RedisUrl, settings: Settings, metrics: Metrics) -> None:
        self._keep = settings.store_history
        redis = settings.section(RedisSettings)
        self._idle = redis.store_idle_seconds
        self._metrics = metrics
        limits = RedisLimits.of(redis)
        turn_s = settings.store_timeout_ms / 1000
        links = {
            part: RedisLink(
                place, f"store_{part}", limit_s, limits, metrics, turn_s=turn_s, on_up=partial(self._answers, part, 1)
            )
            for part, limit_s in (("read", limits.read_s), ("write", limits.write_s), ("list", limits.read_s))
        }
        self._reads, self._writes, self._lists = links["read"], links["write"], links["list"]
        self._links = links

    async def open(self) -> None:
        """Look whether Redis is there; it may also come later. Raises StartError where it does not let us in."""
        for part, link in self._links.items():
            if not await link.open():
                self._answers(part, 0)
        await self._warn_of_losses()

    async def append(self, user_id: str, events: Sequence[Event]) -> Appended:
        """Store all events or none, and return once Redis has acknowledged them."""
        keys = [*_keys(user_id), USERS, ACTIVE, ARRIVALS]
        arguments: list[bytes | str | int] = [user_id.encode(), self._keep, self._idle, SWEEP]
        for event in events:
            given = "" if event.event_id is None else "=" + event.event_id
            stored = orjson.dumps([event.item_id, event.event_id])
            arguments += [repr(event.timestamp), given.encode(), event.item_id.encode(), stored]
        # Only what carries an id of its own can be sent twice.
        repeatable = all(event.event_id is not None for event in events)

        async def ask(redis: Redis) -> Appended | EventConflict:
            return _appended(await APPEND.run(redis, keys, arguments))

        outcome = await self._do(self._writes, ask, repeatable=repeatable)
        if isinstance(outcome, EventConflict):
            raise outcome
        return outcome

    async def history(self, user_id: str) -> list[Event]:
        """Return a user's events, oldest first."""
        key = _keys(user_id)[0]

        async def ask(redis: Redis) -> list[Event]:
            rows: Any = await redis.zrange(key, 0, -1, withscores=True)
            return [_event(member, timestamp) for member, timestamp in rows]

        return await self._do(self._reads, ask, repeatable=True)

    async def forget(self, user_id: str) -> int:
        """Delete a user's events. Copies go from Redis' append-only file when it is next rewritten."""

        async def ask(redis: Redis) -> int:
            return _deleted(await FORGET.run(redis, [USERS, ACTIVE, *_keys(user_id)], [user_id.encode()]))

        # Sent twice it would say 0, although it was this one that deleted.
        return await self._do(self._writes, ask, repeatable=False)

    async def users_part(self, query: str, after: Place | None, most: int) -> UserPart:
        """Look at USERS_AT_ONCE users behind `after` and return at most `most` whose id contains `query`."""
        place = ("", "") if after is None else (repr(-after.last_event_at), after.user_id)

        async def ask(redis: Redis) -> UserPart:
            arguments: list[bytes | str | int] = [
                query.encode(),
                USERS_AT_ONCE,
                EVENTS,
                most,
                place[0],
                place[1].encode(),
            ]
            return _part(await LIST.run(redis, [USERS], arguments))

        return await self._do(self._lists, ask, repeatable=True)

    async def close(self) -> None:
        """Disconnect."""
        for link in self._links.values():
            await link.close()

    async def _do(self, link: RedisLink, ask: Callable[[Redis], Coroutine[Any, Any, T]], *, repeatable: bool) -> T:
        try:
            return await link.call(ask, repeatable=repeatable)
        except LinkFailed as failure:
            raise StoreDown(str(failure), maybe_done=failure.maybe_done, retry_s=failure.retry_s) from failure

    def _answers(self, part: str, up: int) -> None:
        self._metrics.store_up(part).set(up)

    async def _warn_of_losses(self) -> None:
        """Say in the log where this Redis is set up to lose what it has acknowledged."""

        async def ask(redis: Redis) -> dict[str, Any]:
            return {**await redis.info("persistence"), **await redis.info("memory")}

        try:
            info = await self._reads.call(ask, repeatable=True)
        except LinkFailed:
            return
        if not info.get("aof_enabled"):
            log.warning("this redis writes no append-only file: a crash loses events that were acknowledged")
        if str(info.get("maxmemory_policy", "noeviction")).startswith("allkeys"):
            log.warning("this redis evicts any key when memory is full: histories can vanish; use noeviction")


def _keys(user_id: str) -> tuple[bytes, bytes]:
    return EVENTS + user_id.encode(), IDS + user_id.encode()


def _appended(reply: Any) -> Appended | EventConflict:
    kind, *rest = _expected(reply)
    if kind == b"stored":
        return Appended(*(int(number) for number in rest))
    if kind != b"conflict":
        raise _no_answer(reply)
    event_id, before, now = (text.decode() for text in rest)
    return EventConflict.between(event_id, before, now)


def _deleted(reply: Any) -> int:
    return int(_expected(reply)) if isinstance(reply, list) else int(reply)


def _expected(reply: Any) -> Any:
    """Return a script's reply unless it says that a key holds what is not ours; raises NothingWritten."""
    if isinstance(reply, list) and reply and reply[0] == b"unexpected":
        key, found, wanted = (part.decode(errors="replace") for part in reply[1:4])
        raise NothingWritten(f"key {key!r} holds a {found}, and this service keeps a {wanted} there")
    return reply


def _event(member: bytes, timestamp: float) -> Event:
    try:
        item_id, event_id = orjson.loads(member[ARRIVAL_DIGITS:])
        if isinstance(item_id, str) and isinstance(event_id, str | None):
            return Event(item_id, timestamp, event_id)
    except ValueError:
        pass
    # One user's, not Redis' fault: it must not open the breaker for all.
    raise BadData(f"a stored event is not one of this service's: {member[:80]!r}")


def _part(reply: Any) -> UserPart:
    user, score, rows = reply
    found = [UserSummary(name.decode(), int(count), -float(at)) for name, count, at in rows]
    return UserPart(found, None if user is None else Place(-float(score), user.decode()))


def _no_answer(reply: Any) -> ValueError:
    return ValueError(repr(reply)[:80])
