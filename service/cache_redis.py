"""The shared cache in Redis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio import Redis

from service.cache_shared import CacheDown
from service.metrics import Metrics
from service.redis_link import PREFIX, LinkFailed, RedisLimits, RedisLink, check_url
from service.settings import Settings


class RedisCache:
    """A ByteCache in the Redis at `url`; every key expires."""

    def __init__(self, url: str, settings: Settings, metrics: Metrics) -> None:
        check_url(url, "cache URL")
        limits = RedisLimits.of(settings)
        self._link = RedisLink(url, "cache", limits.read_s, limits, metrics, turn_s=limits.read_s)

    async def open(self) -> None:
        """Look whether Redis is there; it may also come later. Raises StartError where it does not let us in."""
        await self._link.open()

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of keys, in one question; raises CacheDown."""

        async def ask(redis: Redis) -> list[bytes | None]:
            values: Any = await redis.mget([PREFIX + key for key in keys])
            if len(values) != len(keys) or not all(isinstance(value, bytes | None) for value in values):
                raise ValueError(repr(values)[:80])
            return list(values)

        try:
            return await self._link.call(ask, repeatable=True)
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
            await self._link.call(ask, repeatable=True)
        except LinkFailed as failure:
            raise CacheDown(str(failure)) from failure

    async def close(self) -> None:
        """Disconnect."""
        await self._link.close()
