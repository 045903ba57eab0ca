"""Common part of all recommenders: the history, requests in flight, an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from index.live_catalog import LiveCatalog
from service.engine.base import QueuedEngine
from service.items.artifact_items import ArtifactItems
from service.recommend.histories import Histories, History

Source = Literal["model", "cache", "popular"]
T = TypeVar("T")


class NamedArtifact(Protocol):
    """Name, version and recipe of a loaded artifact, as answers show them."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def recipe(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Catalog rows and scores, best first, where they came from, seconds by stage, and the history they are for."""

    rows: Sequence[int]
    scores: Sequence[float]
    source: Source
    ignored: list[str]
    degraded: list[str]
    seconds: dict[str, float] = field(default_factory=dict)
    vector_D: NDArray[np.float32] | None = None
    history: History | None = None


R = TypeVar("R", bound=Recommendation)


class BaseRecommender:
    """Answers requests with one artifact; `start` before the first, `close` after the last."""

    def __init__(self, histories: Histories, engine: QueuedEngine[Any, Any], items: ArtifactItems) -> None:
        self.histories = histories
        self.items = items
        self._engine = engine
        self._in_flight = 0

    @property
    def catalog(self) -> LiveCatalog:
        """The items of the artifact as they are now."""
        return self.items.catalog

    def start(self) -> None:
        """Start the engine on the running event loop."""
        self._engine.start()

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """Count a request as in flight, also while it has not come to the engine."""
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    async def close(self, within: float) -> None:
        """Answer what is in flight for at most `within` seconds, fail the rest, and stop the threads."""
        end = time.monotonic() + within
        # A request may still be reading its history and come to the engine in a moment.
        while self._in_flight and self._engine.trouble() is None and (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(0.01, left))
        await self._engine.close(max(0.0, end - time.monotonic()))
        self.histories.close()
        self.items.close()

    def shown(self, answer: R) -> R:
        """An answer without the items that may not be shown any more; call it when nothing is awaited until it is sent.

        What was withdrawn while the answer was made is left out, so that it is never shown after the change was
        acknowledged.
        """
        if all(map(self.catalog.is_open, answer.rows)):
            return answer
        kept = [place for place, row in enumerate(answer.rows) if self.catalog.is_open(row)]
        return replace(
            answer, rows=[answer.rows[place] for place in kept], scores=[answer.scores[place] for place in kept]
        )


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Return what all of them give; the first error ends the others and is raised."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
