"""Histories in Redis, for several replicas: one sorted set a user, every change one script.

    anyo:1:events:USER   sorted set, by timestamp; a member is the number of its arrival (16 digits, so that
                         equal timestamps sort by arrival), then ["item id", "event id" or null] as JSON
    anyo:1:ids:USER      hash, event id → item id, of the events that are kept
    anyo:1:users         sorted set of all users, by minus the newest timestamp
    anyo:1:active        sorted set of all users, by the time of their last append (only where users expire)
    anyo:1:arrivals      counter behind the numbers of arrival

A script runs alone and is one transaction in the append-only file: all of it happens or nothing. Its first
write fails where memory is full, before anything has changed. The keys of one script lie in different slots,
so this is for one Redis (with replicas, if you like), not for Redis Cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import orjson
import structlog
from redis.asyncio import Redis

from service.metrics import Metrics
from service.redis_link import PREFIX, LinkFailed, RedisLimits, RedisLink, Script, check_url
from service.settings import Settings
from service.store import Appended, Event, EventConflict, StoreDown, UserSummary

log = structlog.get_logger(__name__)
T = TypeVar("T")

EVENTS, IDS = PREFIX + b"events:", PREFIX + b"ids:"
USERS, ACTIVE, ARRIVALS = PREFIX + b"users", PREFIX + b"active", PREFIX + b"arrivals"
ARRIVAL_DIGITS = 16
USERS_AT_ONCE = 1000  # users that one script looks at: about a millisecond during which Redis does nothing else
SWEEP = 20  # expired users that an append clears out of the lists

APPEND = Script("""
local events, ids, users, active, arrivals = unpack(KEYS)
local user, keep, idle, sweep = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local first, width = 5, 4  -- timestamp, '' or '=' and the event id, item id, what is stored
local fresh, known, duplicates = {}, {}, 0
for at = first, #ARGV, width do
  local id, item = ARGV[at + 1], ARGV[at + 2]
  local before = id ~= '' and (known[id] or redis.call('HGET', ids, id:sub(2)))
  if before and before ~= item then return {'conflict', id:sub(2), before, item} end
  if before then duplicates = duplicates + 1 else fresh[#fresh + 1] = at end
  if id ~= '' then known[id] = item end
end
if #fresh > 0 then
  local number = redis.call('INCRBY', arrivals, #fresh) - #fresh
  for place, at in ipairs(fresh) do
    local member = string.format('%016.0f', number + place) .. ARGV[at + 3]
    redis.call('ZADD', events, ARGV[at], member)
    if ARGV[at + 1] ~= '' then redis.call('HSET', ids, ARGV[at + 1]:sub(2), ARGV[at + 2]) end
  end
end
local surplus = redis.call('ZCARD', events) - keep
if surplus > 0 then
  for _, member in ipairs(redis.call('ZRANGE', events, 0, surplus - 1)) do
    local id = cjson.decode(member:sub(17))[2]
    if id ~= cjson.null then redis.call('HDEL', ids, id) end
  end
  redis.call('ZREMRANGEBYRANK', events, 0, surplus - 1)
end
local newest = redis.call('ZRANGE', events, -1, -1, 'WITHSCORES')[2]
if newest then
  redis.call('ZADD', users, newest:sub(1, 1) == '-' and newest:sub(2) or '-' .. newest, user)
end
if idle > 0 then
  local now = tonumber(redis.call('TIME')[1])
  redis.call('EXPIRE', events, idle)
  redis.call('EXPIRE', ids, idle)
  redis.call('ZADD', active, now, user)
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', active, '-inf', now - idle - 1, 'LIMIT', 0, sweep)) do
    redis.call('ZREM', users, gone)
    redis.call('ZREM', active, gone)
  end
else
  redis.call('PERSIST', events)
  redis.call('PERSIST', ids)
  redis.call('ZREM', active, user)
end
return {'stored', #fresh, duplicates, redis.call('ZCARD', events)}
""")

FORGET = Script("""
local events, ids, users, active = unpack(KEYS)
local count = redis.call('ZCARD', events)
redis.call('DEL', events, ids)
redis.call('ZREM', users, ARGV[1])
redis.call('ZREM', active, ARGV[1])
return count
""")

LIST = Script("""
local query, start, look, prefix = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local rows = redis.call('ZRANGE', KEYS[1], start, start + look - 1, 'WITHSCORES')
local found = {#rows / 2}
for at = 1, #rows, 2 do
  if query == '' or rows[at]:find(query, 1, true) then
    local count = redis.call('ZCARD', prefix .. rows[at])
    if count > 0 then  -- none: the user has expired and is not swept out yet
      found[#found + 1] = {rows[at], count, rows[at + 1]}
    end
  end
end
return found
""")


class RedisStore:
    """A HistoryStore in the Redis at `url`. Reads and writes have a link each, since writes may wait for a disk."""

    def __init__(self, url: str, settings: Settings, metrics: Metrics) -> None:
        check_url(url, "store URL")
        self._keep = settings.store_history
        self._idle = settings.store_idle_seconds
        self._metrics = metrics
        limits = RedisLimits.of(settings)
        turn_s = settings.store_timeout_ms / 1000
        self._reads = RedisLink(url, "store_read", limits.read_s, limits, metrics, turn_s=turn_s, on_up=self._up)
        self._writes = RedisLink(url, "store_write", limits.write_s, limits, metrics, turn_s=turn_s)

    async def open(self) -> None:
        """Look whether Redis is there; it may also come later. Raises StartError where it does not let us in."""
        if await self._reads.open():
            await self._warn_of_losses()
        else:
            self._metrics.store_up.set(0)
        await self._writes.open()

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
            return int(await FORGET.run(redis, [*_keys(user_id), USERS, ACTIVE], [user_id.encode()]))

        return await self._do(self._writes, ask, repeatable=False)

    async def users(self, query: str, limit: int, offset: int) -> list[UserSummary]:
        """Return users whose id contains `query`, the most recently active first.

        The list is read in parts; a user who becomes active meanwhile may move from one part to another.
        """
        found: dict[str, UserSummary] = {}
        start = 0
        while len(found) < offset + limit:

            async def ask(redis: Redis, start: int = start) -> tuple[int, list[UserSummary]]:
                return _summaries(await LIST.run(redis, [USERS], [query.encode(), start, USERS_AT_ONCE, EVENTS]))

            looked_at, some = await self._do(self._reads, ask, repeatable=True)
            found.update((row.user_id, row) for row in some)
            start += looked_at
            if looked_at < USERS_AT_ONCE:
                break
        return list(found.values())[offset : offset + limit]

    async def close(self) -> None:
        """Disconnect."""
        await self._reads.close()
        await self._writes.close()

    async def _do(self, link: RedisLink, ask: Callable[[Redis], Coroutine[Any, Any, T]], *, repeatable: bool) -> T:
        try:
            return await link.call(ask, repeatable=repeatable)
        except LinkFailed as failure:
            raise StoreDown(str(failure), maybe_done=failure.maybe_done, retry_s=failure.retry_s) from failure

    def _up(self) -> None:
        self._metrics.store_up.set(1)

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
    kind, *rest = reply
    if kind == b"stored":
        stored, duplicates, total = (int(number) for number in rest)
        return Appended(stored, duplicates, total)
    if kind != b"conflict":
        raise _no_answer(reply)
    event_id, before, now = (text.decode() for text in rest)
    return EventConflict.between(event_id, before, now)


def _event(member: bytes, timestamp: float) -> Event:
    item_id, event_id = orjson.loads(member[ARRIVAL_DIGITS:])
    if not isinstance(item_id, str) or not isinstance(event_id, str | None):
        raise _no_answer(member)
    return Event(item_id, timestamp, event_id)


def _summaries(reply: Any) -> tuple[int, list[UserSummary]]:
    looked_at, *rows = reply
    return int(looked_at), [UserSummary(user.decode(), int(count), -float(score)) for user, count, score in rows]


def _no_answer(reply: Any) -> ValueError:
    return ValueError(repr(reply)[:80])
