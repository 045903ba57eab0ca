"""From a request to recommended rows, the generative way: history, prompt, texts, the items that they stand for.

Knows neither HTTP nor JSON. One recommender serves one artifact. Nothing is cached: what is asked is written.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from modeling.generation.api import GeneratedList, GenerationSettings, ListQuery
from modeling.generation.beam_search import GenerationError
from service.artifacts.loading import LoadedGenerative
from service.engine.base import OnStep
from service.engine.batcher import Limits
from service.engine.device_lock import DeviceLock
from service.engine.generative import GenerativeEngine
from service.engine.work import WriteWork
from service.errors import InvalidInput
from service.items.artifact_items import ArtifactItems
from service.observability.metrics import Metrics
from service.recommend.base import BaseRecommender, Recommendation
from service.recommend.histories import Histories, History
from service.recommend.requests import GenerativeQuery
from service.settings import Settings
from service.stores.guarded import GuardedStore


@dataclass(frozen=True, slots=True)
class GenerativeRecommendation(Recommendation):
    """A recommendation, and what was written for it; nothing was (None) where popular items are the answer."""

    written: GeneratedList | None = None
    beams: int = 0


class GenerativeRecommender(BaseRecommender):
    """Answers requests with one generative artifact; `start` before the first, `close` after the last."""

    kind: Literal["generative"] = "generative"

    def __init__(
        self, parts: LoadedGenerative, store: GuardedStore, settings: Settings, metrics: Metrics, device: DeviceLock
    ) -> None:
        self.parts = parts
        self.limit = _smaller(
            parts.model.limit, GenerationSettings(settings.generative_max_beams, settings.generative_max_new_tokens)
        )
        self.default = _smaller(parts.model.default, self.limit)
        limits = Limits(
            settings.generative_batch_tokens,
            settings.generative_batch_requests,
            settings.generative_queued_tokens,
            settings.max_batch_padding,
            settings.generative_queued_requests,
        )
        self.engine = GenerativeEngine(
            parts.model,
            limits,
            metrics,
            recipe=parts.recipe,
            catalog_size=len(parts.catalog),
            device=device,
            max_dense_waiting=settings.generative_dense_waiting,
            stall_seconds=settings.stall_seconds,
        )
        items = ArtifactItems(parts, settings, metrics)
        super().__init__(Histories(parts, store, settings, metrics, catalog=items.catalog), self.engine, items)

    async def recommend(
        self, query: GenerativeQuery, deadline: float, on_step: OnStep | None = None
    ) -> GenerativeRecommendation:
        """Answer one request before `deadline` (a time of `time.monotonic`); `on_step` gets the best text so far.

        Raises InvalidInput, NothingUsable, Conflict, TooLarge, Overloaded, ModelError, NotReady,
        DeadlineExceeded.
        """
        self._in_flight += 1
        try:
            return await self._recommend(query, deadline, on_step)
        finally:
            self._in_flight -= 1

    def settings_of(self, query: GenerativeQuery) -> GenerationSettings:
        """Return how to write for a request; raises InvalidInput beyond what is allowed."""
        for name in ("beams", "max_new_tokens"):
            given, most = getattr(query, name), getattr(self.limit, name)
            if given is not None and given > most:
                raise InvalidInput(
                    f"{name} is {given}, and artifact {self.parts.name!r} (recipe {self.parts.recipe!r}) is served "
                    f"with at most {most}",
                    field=name,
                )
        return GenerationSettings(
            self.default.beams if query.beams is None else query.beams,
            self.default.max_new_tokens if query.max_new_tokens is None else query.max_new_tokens,
        )

    async def _recommend(
        self, query: GenerativeQuery, deadline: float, on_step: OnStep | None
    ) -> GenerativeRecommendation:
        settings = self.settings_of(query)
        history = await self.histories.of(query)
        if not history.parts:
            rows, scores = await self.histories.popular(query, history)
            return GenerativeRecommendation(rows, scores, "popular", history.ignored, history.degraded, history.seconds)
        started = time.monotonic()
        allowed = await self.histories.allowed(query.categories)
        wanted = self._wanted(query, history, allowed)
        try:
            readable = await self.histories.readable(history, deadline)
            prompt = self.parts.model.prepare(readable, query.user_id)
        except GenerationError as error:
            raise InvalidInput(str(error), field="history") from error
        read = (tuple(history.parts), prompt.tokens)  # a model may read the same items differently for another user
        changes = self.catalog.generation
        key = (*read, wanted.k, wanted.exclude.tobytes(), tuple(sorted(set(query.categories))), settings, changes)
        seconds = history.seconds | {"assemble": time.monotonic() - started}
        writing = await self.engine.run(WriteWork(prompt, wanted, settings), key, deadline, on_step)
        written = self._as_now(writing.written)
        assert settings.beams is not None
        return GenerativeRecommendation(
            written.rows_K.tolist(),
            written.scores_K.tolist(),
            "model",
            history.ignored,
            history.degraded,
            seconds | writing.seconds,
            written=written,
            beams=settings.beams,
        )

    def _wanted(self, query: GenerativeQuery, history: History, allowed: NDArray[np.int64] | None) -> ListQuery:
        """What to ask of the model, in the rows that it knows."""
        self.items.renew_names()
        exclude = self.items.of_model(self.histories.excluded(query, history))
        return ListQuery(
            max(1, min(query.k, len(self.catalog))),
            self.items.closed_to_model(exclude),
            None if allowed is None else self.items.of_model(allowed),
        )

    def _as_now(self, written: GeneratedList) -> GeneratedList:
        """An answer of the model in the rows that items have now, without those that may not be shown."""
        if not self.catalog.changed:
            return written
        current = [self.catalog.current(row) for row in written.rows_K.tolist()]
        kept = [place for place, row in enumerate(current) if row is not None]
        texts = tuple(
            replace(text, row=None if text.row is None else self.catalog.current(text.row))
            for text in written.generated
        )
        rows_K = np.array([current[place] for place in kept], np.int64)
        return replace(written, rows_K=rows_K, scores_K=written.scores_K[kept], generated=texts)


def _smaller(one: GenerationSettings, other: GenerationSettings) -> GenerationSettings:
    """Return the smaller of each field; both are set in both."""
    assert one.beams and one.max_new_tokens and other.beams and other.max_new_tokens
    return GenerationSettings(min(one.beams, other.beams), min(one.max_new_tokens, other.max_new_tokens))
