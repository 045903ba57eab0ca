"""From a request to recommended rows, the generative way: history, prompt, texts, the items that they stand for.

Knows neither HTTP nor JSON. One recommender serves one artifact. Nothing is cached: what is asked is written.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from modeling.generation.api import GeneratedList, GenerationSettings, ListQuery
from modeling.generation.beam_search import GenerationError
from modeling.generation.sentence import Sentence
from modeling.methods.base_ranking import CandidateRanker, RankPart, RankPrompt
from service.artifacts.loading import LoadedGenerative
from service.engine.base import OnStep
from service.engine.batcher import Limits
from service.engine.device_lock import DeviceLock
from service.engine.generative import GenerativeEngine
from service.engine.work import DivisionWork, RankWork, SentenceWork, WriteWork
from service.errors import Conflict, InvalidInput, NotReady, TooLarge
from service.items.artifact_items import ArtifactItems
from service.observability.metrics import Metrics
from service.recommend.base import BaseRecommender, Recommendation, together
from service.recommend.histories import Histories, History
from service.recommend.ranking import Ranking, ranked, ranked_by_popularity, resolve_candidates
from service.recommend.requests import GenerativeQuery, RankQuery
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
        if self.ranks:
            metrics.rank_candidates(parts.recipe)
        self.default = _smaller(parts.model.default, self.limit)
        self._limits = limits = Limits(
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
        with self._answering():
            return await self._recommend(query, deadline, on_step)

    @property
    def ranks(self) -> bool:
        """Whether the model scores given candidates."""
        return isinstance(self.parts.model, CandidateRanker)

    async def rank(self, query: RankQuery, deadline: float) -> Ranking:
        """Order the candidates of one request before `deadline`; raises as `recommend`, and Conflict where the model
        does not score candidates."""
        with self._answering():
            return await self._rank(query, deadline)

    @property
    def says(self) -> bool:
        """Whether a language model with a head over words is in it, which can write a sentence."""
        return self.engine.sentences is not None

    async def say(self, item: str, history: Sequence[str], deadline: float) -> Sentence | None:
        """Return one sentence that names the item and items of the history, all given by their titles, and nothing
        else; None where there is nothing to name. Raises Overloaded, TooLarge, InvalidInput, ModelError, NotReady,
        DeadlineExceeded."""
        writer = self.engine.sentences
        if writer is None:
            raise NotReady("the language model is being unloaded")
        with self._answering():
            prompt = await self.histories.aside(partial(writer.prepare, item, history))
            if prompt is None:
                return None
            return (await self.engine.say(SentenceWork(prompt), prompt.tokens, deadline)).sentence

    async def _rank(self, query: RankQuery, deadline: float) -> Ranking:
        model, catalog = self.parts.model, self.catalog
        if not isinstance(model, CandidateRanker):
            raise Conflict(
                f"artifact {self.parts.name!r} (recipe {self.parts.recipe!r}) generates lists and does not score given "
                "candidates; dense artifacts and those of ranking recipes do",
                field="artifact",
                code="wrong_kind",
            )
        history = await self.histories.of(query)
        found = resolve_candidates(query, catalog, by_title="text" in model.reads)
        asked = self._as_trained(found.parts)
        distinct = list(dict.fromkeys(asked))  # new items and free titles may share a title, which is scored once
        if not history.parts:
            return ranked_by_popularity(found, catalog, history)
        started = time.monotonic()
        readable = await self.histories.readable(history, deadline)
        candidates = await self.histories.read(distinct, deadline, "candidates")
        prompt = model.prepare_candidates(readable, candidates, query.user_id)
        assembled = time.monotonic() - started
        key = (tuple(history.parts), query.user_id, tuple(found.parts))
        scores_D, taken = await self._scores(prompt, key, deadline)
        place_of = {part: place for place, part in enumerate(distinct)}
        scores_C = scores_D[[place_of[part] for part in asked]]
        return ranked(found, scores_C, "model", history, history.seconds | {"assemble": assembled} | taken)

    async def _scores(
        self, prompt: RankPrompt, key: Hashable, deadline: float
    ) -> tuple[NDArray[np.float32], dict[str, float]]:
        """Return the scores of all candidates of a prompt, and seconds by stage; raises TooLarge."""
        parts = [RankPart(tuple(range(len(prompt.candidates))), prompt)]
        started, queued = time.monotonic(), 0.0
        if prompt.length > (most := self._limits.max_batch_tokens):
            self._refuse_more_than_the_queue_holds(prompt)
            divided = await self.engine.divide(DivisionWork(prompt, most), ("divided", key), deadline)
            parts, queued = list(divided.parts), divided.seconds["queue"]
            self._refuse_what_no_batch_holds(parts)
        scored = await together(
            self.engine.score(RankWork(part.prompt), (key, number), deadline) for number, part in enumerate(parts)
        )
        scores_C = np.empty(len(prompt.candidates), np.float32)
        for part, each in zip(parts, scored, strict=True):
            scores_C[list(part.places)] = each.scores_C
        queued += min(each.seconds["queue"] for each in scored)  # the other parts wait for parts of this request
        return scores_C, {"queue": queued, "rank": time.monotonic() - started - queued}

    def _refuse_more_than_the_queue_holds(self, prompt: RankPrompt) -> None:
        if prompt.length > (most := self._limits.max_queued_tokens):
            raise TooLarge(
                f"{len(prompt.candidates)} candidates with this history take {prompt.length} positions, and the queue "
                f"may hold {most}; send fewer candidates or a shorter history, or raise ANYO_GENERATIVE_QUEUED_TOKENS",
                field="candidates",
            )

    def _refuse_what_no_batch_holds(self, parts: Sequence[RankPart]) -> None:
        longest = max(parts, key=lambda part: part.prompt.length)
        if longest.prompt.length > (most := self._limits.max_batch_tokens):
            raise TooLarge(
                f"a prompt with this history and {len(longest.places)} of the candidates takes {longest.prompt.length} "
                f"positions, and a batch may hold {most}; send a shorter history or fewer candidates, or raise "
                "ANYO_GENERATIVE_BATCH_TOKENS",
                field="candidates",
            )
        if len(parts) > (entries := self._limits.max_queued_requests or len(parts)):
            raise TooLarge(
                f"the candidates are scored in {len(parts)} batches, and the queue may hold {entries} entries; send "
                "fewer candidates, or raise ANYO_GENERATIVE_BATCH_TOKENS or ANYO_GENERATIVE_QUEUED_REQUESTS",
                field="candidates",
            )

    def _as_trained(self, parts: Sequence[int | str]) -> list[int | str]:
        """Candidates as the model knows them: an item that changed since by the row that it was trained under, one that
        is new by its title."""
        known: list[int | str] = []
        for part in parts:
            item = None if isinstance(part, str) else self.catalog.item(part)
            if item is None:
                known.append(part)
            else:
                known.append(item.title if item.trained_row is None else item.trained_row)
        return known

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
        allowed = await self.histories.allowed(query.wanted)
        wanted = self._wanted(query, history, allowed)
        try:
            readable = await self.histories.readable(history, deadline)
            prompt = self.parts.model.prepare(readable, query.user_id)
        except GenerationError as error:
            raise InvalidInput(str(error), field="history") from error
        read = (tuple(history.parts), prompt.tokens)  # a model may read the same items differently for another user
        changes = self.catalog.generation
        key = (*read, wanted.k, wanted.exclude.tobytes(), query.wanted, settings, changes)
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
        """The query to the model, in the rows that it knows."""
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
