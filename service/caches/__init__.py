"""Caches: each process's own, in memory, and one that replicas share."""

from __future__ import annotations

from service.caches.shared import SharedCache
from service.observability.metrics import Metrics
from service.settings import Settings


def open_cache(settings: Settings, metrics: Metrics) -> SharedCache | None:
    """Return the (not yet opened) shared cache of the settings, or None without one; raises StartError."""
    if not settings.cache:
        return None
    # Imported late: redis-py takes time and memory where it is not used.
    from service.caches.redis import RedisCache

    return SharedCache(RedisCache(settings.cache, settings, metrics), settings, metrics)
