"""Which artifact answers a request that names none: a split by weight, and a shadow that is only compared.

Of dense artifacts only: generative ones have endpoints of their own.

The split is by rendezvous: every artifact draws a number from the hash of the user (or, without one, of the request
id) and its own name, and the weighted best wins. So a user stays with an artifact, in every process alike, and when
weights change only as many users move as must.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from service.errors import AnyoError
from service.lifecycle.lookup import AnyRecommender
from service.observability.metrics import Metrics
from service.recommend.dense import DenseRecommender

log = structlog.get_logger(__name__)

Replay = Callable[[DenseRecommender, float], Awaitable[Sequence[str]]]
"""Answers a request again with another artifact before a deadline: the ids of the items."""

SHADOW_BACKLOG = 64  # answered requests that may wait for the shadow
HASH_BITS = 64


def draw(name: str, key: str) -> float:
    """Return a number above 0 and at most 1 that follows from an artifact's name and a user or request."""
    digest = hashlib.blake2b(f"{name}\0{key}".encode(), digest_size=HASH_BITS // 8).digest()
    return (int.from_bytes(digest, "big") + 1) / 2.0**HASH_BITS


def choose(weights: Mapping[str, float], key: str) -> str:
    """Return the artifact that `key` falls to; each gets its weight's share of all keys."""
    return max(weights, key=lambda name: weights[name] / -math.log(min(draw(name, key), 1 - 2**-53)))


@dataclass(slots=True)
class Comparison:
    """Comparison of the shadow's answers so far with those that were served."""

    compared: int = 0
    dropped: int = 0
    failed: int = 0
    overlap: float = 0.0  # sums; the means are what is shown
    served_s: float = 0.0
    shadow_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Served:
    """A request that has been answered, for the shadow to answer again."""

    replay: Replay
    items: Sequence[str]
    seconds: float


class Traffic:
    """The split and the shadow of one process. Runs on the event loop."""

    def __init__(
        self,
        metrics: Metrics,
        recommenders: Mapping[str, AnyRecommender],
        *,
        deadline_s: float,
        busy: Callable[[], bool],
    ) -> None:
        self._metrics = metrics
        self._recommenders = recommenders
        self._deadline_s = deadline_s
        self._busy = busy
        self._waiting: asyncio.Queue[Served] = asyncio.Queue(SHADOW_BACKLOG)
        self._task: asyncio.Task[None] | None = None
        self.weights: dict[str, float] = {}
        self.shadow: str | None = None
        self.comparison = Comparison()

    def uses(self, name: str) -> bool:
        """Return whether the split or the shadow names an artifact."""
        return name == self.shadow or name in self.weights

    def set(self, weights: Mapping[str, float], shadow: str | None) -> None:
        """Change the split (none: the default artifact answers all) and the shadow, from the next request on."""
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        self.shadow = shadow
        self.comparison = Comparison()
        while not self._waiting.empty():
            self._waiting.get_nowait()

    def choose(self, user_id: str | None, request_id: str) -> str | None:
        """Return the artifact of a request that names none; None means the default one."""
        if not self.weights:
            return None
        return choose(self.weights, request_id if user_id is None else user_id)

    def offer(self, replay: Replay, answered_by: str, items: Sequence[str], seconds: float) -> None:
        """Let the shadow answer again what was answered with `items` as the traffic is set, unless there is better to
        do."""
        if self.shadow is None or answered_by == self.shadow:
            return
        if self._busy() or self._waiting.full():
            self.comparison.dropped += 1
            self._metrics.shadow("dropped").inc()
            return
        self._waiting.put_nowait(Served(replay, items, seconds))
        if self._task is None:
            self._task = asyncio.create_task(self._compare_all())

    async def close(self) -> None:
        """Stop comparing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def shown(self) -> dict[str, Any] | None:
        """Return the shadow and how it compares, or None without one."""
        if self.shadow is None:
            return None
        sums, count = self.comparison, self.comparison.compared

        def mean(total: float, factor: float = 1.0) -> float | None:
            return round(factor * total / count, 4) if count else None

        return {
            "artifact": self.shadow,
            "compared": count,
            "dropped": sums.dropped,
            "failed": sums.failed,
            "overlap": mean(sums.overlap),
            "served_ms": mean(sums.served_s, 1000),
            "shadow_ms": mean(sums.shadow_s, 1000),
        }

    async def _compare_all(self) -> None:
        """One at a time, so that a shadow never has more than one entry on the device."""
        while True:
            served = await self._waiting.get()
            recommender = self._recommenders.get(self.shadow or "")
            if recommender is not None and recommender.kind == "dense":
                await self._compare(served, recommender)

    async def _compare(self, served: Served, recommender: DenseRecommender) -> None:
        sums, started = self.comparison, time.monotonic()
        try:
            found = await served.replay(recommender, started + self._deadline_s)
        except AnyoError as error:
            sums.failed += 1
            self._metrics.shadow("failed").inc()
            log.info("the shadow failed", artifact=recommender.parts.name, error=error.message)
            return
        except Exception as error:  # the next request is to be compared all the same
            sums.failed += 1
            self._metrics.shadow("failed").inc()
            log.error("the shadow failed", artifact=recommender.parts.name, error=repr(error), exc_info=error)
            return
        seconds = time.monotonic() - started
        longest = max(len(served.items), len(found))
        overlap = len(set(found) & set(served.items)) / longest if longest else 1.0
        sums.compared += 1
        sums.overlap += overlap
        sums.served_s += served.seconds
        sums.shadow_s += seconds
        self._metrics.shadow("compared").inc()
        self._metrics.shadow_overlap.observe(overlap)
        self._metrics.shadow_seconds.observe(seconds)
