"""Interface of a cache that replicas share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class CacheDown(Exception):
    """The cache did not answer."""


class ByteCache(Protocol):
    """Bytes by key, somewhere else. `get` has a time limit of its own, after which it raises CacheDown."""

    async def open(self) -> None:
        """Connect; a cache that is away is no error. Raises StartError where it will never work."""

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of keys; raises CacheDown."""

    async def put(self, values: Mapping[bytes, tuple[bytes, int]]) -> None:
        """Store (value, seconds to keep it) by key; raises CacheDown."""

    async def close(self) -> None:
        """Disconnect."""
