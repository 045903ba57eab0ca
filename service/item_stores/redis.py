"""Items in Redis, for several replicas.

    anyo:1:items         hash, item id → "VERSION NUMBER CONTENT"
    anyo:1:items_log     sorted set of item ids, by the number of their last change
    anyo:1:items_number  counter behind the numbers

Every operation is one script; the keys lie in different slots, so this is not for Redis Cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from redis.asyncio import Redis

from service.item_stores.base import Changes, ItemContent, ItemWrite, StoredItem, Written, never_stored
from service.observability.metrics import Metrics
from service.redis_client.client import PREFIX, LinkFailed, RedisLimits, RedisLink, Script
from service.redis_client.errors import BadData
from service.settings import Settings
from service.settings.store_kinds.redis import RedisSettings, RedisUrl
from service.stores.base import StoreDown

T = TypeVar("T")

KEYS = [PREFIX + name for name in (b"items", b"items_log", b"items_number")]
OUTCOMES = {b"changed": "changed", b"same": "same", b"stale": "stale"}

# A version is at most 15 digits, so that Lua's numbers hold it exactly.
WRITE = Script("""
local items, log, counter = unpack(KEYS)
local answers = {}
for at = 1, #ARGV, 3 do
  local id, expected, content = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local before = redis.call('HGET', items, id)
  local version, number, stored = '0', '0', ''
  if before then version, number, stored = before:match('^(%d+) (%d+) (.*)$') end
  if not version then return redis.error_reply('an entry of ' .. items .. ' is not one of this service') end
  local outcome = 'changed'
  if before and stored == content then outcome = 'same'
  elseif expected ~= '' and expected ~= version then outcome = 'stale'
  else
    number = string.format('%.0f', redis.call('INCR', counter))
    version = string.format('%.0f', tonumber(version) + 1)
    stored = content
    redis.call('ZADD', log, number, id)
    redis.call('HSET', items, id, version .. ' ' .. number .. ' ' .. content)
  end
  answers[#answers + 1] = {outcome, id, version .. ' ' .. number .. ' ' .. stored}
end
return answers
""")

CHANGES = Script("""
local items, log, counter = unpack(KEYS)
local ids = redis.call('ZRANGEBYSCORE', log, '(' .. ARGV[1], '+inf', 'LIMIT', 0, ARGV[2])
local found = {}
for place, id in ipairs(ids) do found[place] = {id, redis.call('HGET', items, id)} end
return {redis.call('GET', counter) or '0', found}
""")


def open_url(place: RedisUrl, settings: Settings, metrics: Metrics) -> RedisItemStore:
    """Return the (not yet opened) store in a Redis."""
    return RedisItemStore(place, settings, metrics)


class RedisItemStore:
    """An ItemStore in the Redis at `place`; reads and writes have a link each, as with histories."""

    def __init__(self, place: RedisUrl, settings: Settings, metrics: Metrics) -> None:
        limits = RedisLimits.of(settings.section(RedisSettings))
        turn_s = settings.store_timeout_ms / 1000
        self._reads, self._writes = (
            RedisLink(place, f"items_{part}", limit_s, limits, metrics, turn_s=turn_s)
            for part, limit_s in (("read", limits.write_s), ("write", limits.write_s))
        )

    async def open(self) -> None:
        """Look whether Redis is there; it may also come later. Raises StartError where it does not let us in."""
        await self._reads.open()
        await self._writes.open()

    async def write(self, writes: Sequence[ItemWrite]) -> list[Written]:
        """Carry out writes, and return once Redis has acknowledged them."""
        arguments: list[bytes | str | int] = []
        for write in writes:
            expected = "" if write.expected is None else str(write.expected)
            arguments += [write.item_id.encode(), expected, write.content.to_json()]

        async def ask(redis: Redis) -> list[Written]:
            reply: Any = await WRITE.run(redis, KEYS, arguments)
            return [Written(_item(item_id, entry), OUTCOMES[outcome]) for outcome, item_id, entry in reply]  # type: ignore[arg-type]

        # A content that is stored already is found to be the same: sent twice it does no harm.
        return await self._do(self._writes, ask)

    async def get(self, item_id: str) -> StoredItem | None:
        """Return an item; None where it was never changed."""

        async def ask(redis: Redis) -> StoredItem | None:
            entry: Any = await redis.hget(KEYS[0], item_id)
            return None if entry is None else _item(item_id.encode(), entry)

        return await self._do(self._reads, ask)

    async def changes(self, after: int, most: int) -> Changes:
        """Return at most `most` changes after a number."""

        async def ask(redis: Redis) -> Changes:
            newest, found = await CHANGES.run(redis, KEYS, [after, most])
            return Changes([_item(item_id, entry) for item_id, entry in found], int(newest))

        return await self._do(self._reads, ask)

    async def close(self) -> None:
        """Disconnect."""
        await self._reads.close()
        await self._writes.close()

    async def _do(self, link: RedisLink, ask: Callable[[Redis], Coroutine[Any, Any, T]]) -> T:
        try:
            return await link.call(ask, repeatable=True)
        except LinkFailed as failure:
            raise StoreDown(str(failure), maybe_done=failure.maybe_done, retry_s=failure.retry_s) from failure


def _item(item_id: bytes, entry: bytes) -> StoredItem:
    try:
        version, number, content = entry.split(b" ", 2)
        if version == b"0":
            return never_stored(item_id.decode())
        return StoredItem(item_id.decode(), ItemContent.from_json(content), int(version), int(number))
    except (ValueError, AttributeError):
        raise BadData(f"a stored item is not one of this service's: {item_id[:80]!r}") from None
