"""The shared cache in Redis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from redis.asyncio import Redis

from service.caches.base import CacheDown
from service.errors import StartError
from service.observability.metrics import Metrics
from service.redis_client.client import PREFIX, LinkFailed, RedisLimits, RedisLink
from service.settings import Settings
from service.settings.addresses import StoreUrlError
from service.settings.store_kinds.redis import RedisSettings, parse_cache_url


class RedisCache:
    """A ByteCache in the Redis at `url`; every key expires. Writes that hang or fail do not end the reads."""

    def __init__(self, url: str, settings: Settings, metrics: Metrics) -> None:
        try:
            place = parse_cache_url(url)
        except StoreUrlError as error:
            raise StartError(str(error)) from None
        limits = RedisLimits.of(settings.section(RedisSettings))
        self._up = {"read": metrics.cache_up("read"), "write": metrics.cache_up("write")}

        def link(part: str, op: str) -> RedisLink:
            return RedisLink(
                place, part, limits.read_s, limits, metrics, turn_s=limits.read_s, on_up=partial(self._up[op].set, 1)
            )

        self._reads, self._writes = link("cache", "read"), link("cache_write", "write")

    async def open(self) -> None:
        """Look whether Redis is there; it may also come later. Raises StartError where it does not let us in."""
        for op, link in (("read", self._reads), ("write", self._writes)):
            if not await link.open():
                self._up[op].set(0)

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of keys, in one question; raises CacheDown."""

        async def ask(redis: Redis) -> list[bytes | None]:
            values: Any = await redis.mget([PREFIX + key for key in keys])
            if len(values) != len(keys) or not all(isinstance(value, bytes | None) for value in values):
                raise ValueError(repr(values)[:80])
            return list(values)

        try:
            return await self._reads.call(ask, repeatable=True)
        except LinkFailed as failure:
            raise CacheDown(str(failure)) from failure

    async def put(self, values: Mapping[bytes, tuple[bytes, int]]) -> None:
        """Store (value, seconds to keep it) by key; raises CacheDown."""

        async def ask(redis: Redis) -> None:
            async with redis.pipeline(transaction=False) as pipeline:
                for key, (value, seconds) in values.items():
                    pipeline.set(PREFIX + key, value, ex=seconds)
                await pipeline.execute()

        try:
            await self._writes.call(ask, repeatable=True)
        except LinkFailed as failure:
            raise CacheDown(str(failure)) from failure

    async def close(self) -> None:
        """Disconnect."""
        await self._reads.close()
        await self._writes.close()
