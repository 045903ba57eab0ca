"""Settings of the cache that replicas share."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from service.settings.base import Section
from service.settings.store_kinds.redis import parse_cache_url


def _checked(url: str) -> str:
    if url:
        parse_cache_url(url)
    return url


class SharedCacheSettings(Section):
    """Settings of the cache that replicas share."""

    cache: Annotated[str, AfterValidator(_checked)] = Field(
        default="",
        description="Redis URL of a cache that replicas share, behind each one's own memory; empty means memory "
        "only. It may be the store's Redis, but a memory limit that evicts belongs on one of its own.",
    )
    cache_vector_seconds: int = Field(
        default=86_400,
        ge=1,
        le=31_536_000,
        description="Time that a user vector stays in the shared cache.",
    )
    cache_result_seconds: int = Field(
        default=0,
        ge=0,
        le=31_536_000,
        description="Time that a whole answer stays in the shared cache, so that the same request need not even be "
        "searched; 0 shares no answers. Keep it short: within it an answer does not change.",
    )
