"""Stages: a dense artifact retrieves, a ranker of the same or another artifact orders what was retrieved, and a choice
among it avoids repetition.

The dense answer is worth more than none. Where the ranking, or an explanation, does not end in its time, is refused
under load or fails, the answer comes without it and `degraded` says so; likewise where the ranker cannot score a
candidate: its catalog lacks it, or it was added since and the ranker reads no titles.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import structlog

from index.live_catalog import LiveCatalog
from service.errors import AnyoError, DeadlineExceeded, ModelError, NothingUsable, NotReady, Overloaded, TooLarge
from service.observability.metrics import Metrics
from service.recommend.base import NamedArtifact, Recommendation
from service.recommend.dense import DenseRecommender
from service.recommend.diversity import Diversity, choose
from service.recommend.explaining import Explanation
from service.recommend.ranking import Ranking, parts_as_items
from service.recommend.requests import RankQuery, RecommendQuery
from service.recommend.sentences import MISSED, Speaker, WrittenSentence, write_sentence

log = structlog.get_logger(__name__)

RERANK, EXPLAIN, DIVERSIFY, SENTENCE = "rerank", "explain", "diversify", "sentence"  # in `degraded`, and as stages
MARGIN_S = 0.02  # before the deadline of the whole request, in which its answer is written
PASSING = (DeadlineExceeded, ModelError, NotReady, NothingUsable, Overloaded)


class AnyRanker(Protocol):
    """A recommender that ranks candidates: that of a dense artifact, or of one whose model is a ranker."""

    @property
    def parts(self) -> NamedArtifact: ...
    @property
    def catalog(self) -> LiveCatalog: ...

    async def rank(self, query: RankQuery, deadline: float) -> Ranking: ...


@dataclass(frozen=True, slots=True)
class SecondStage:
    """A ranker for the second stage, and its number of candidates."""

    ranker: AnyRanker
    candidates: int


@dataclass(frozen=True, slots=True)
class StagedAnswer:
    """An answer, whether it was ranked again, and why its items are in it, where that was asked for."""

    answer: Recommendation
    reranked: bool = False
    explanation: Explanation | None = None
    sentence: WrittenSentence | None = None

    def shown(self, catalog: LiveCatalog) -> StagedAnswer:
        """Return it without the items that may not be shown any more; see `BaseRecommender.shown`."""
        rows, scores = self.answer.rows, self.answer.scores
        kept = [place for place, row in enumerate(rows) if catalog.is_open(row)]
        if len(kept) == len(rows):
            return self
        answer = replace(self.answer, rows=[rows[place] for place in kept], scores=[scores[place] for place in kept])
        explanation = None if self.explanation is None else self.explanation.of(kept)
        sentence = None if self.sentence is None else self.sentence.of(answer.rows)
        return replace(self, answer=answer, explanation=explanation, sentence=sentence)


class Stages:
    """Answers a request in one or more stages, explained where that is wanted. `patience_s` is the time that the
    ranking may take, and again the explanation."""

    def __init__(self, metrics: Metrics, patience_s: float) -> None:
        self._metrics, self._patience_s = metrics, patience_s

    async def recommend(
        self,
        dense: DenseRecommender,
        query: RecommendQuery,
        second: SecondStage | None,
        explain: bool,
        deadline: float,
        diversity: Diversity | None = None,
        speaker: Speaker | None = None,
    ) -> StagedAnswer:
        """Return the answer of one request before `deadline`; raises as `DenseRecommender.recommend`, and Conflict and
        TooLarge of the ranker. With a second stage `diversity` chooses among the candidates of that. An explanation has
        a sentence of `speaker`."""
        wider = query
        if second is not None or diversity is not None:
            candidates = second.candidates if second is not None else diversity.candidates if diversity else 0
            wider = replace(query, k=max(query.k, candidates))
        first = answer = await dense.recommend(wider, deadline)
        reranked, explanation, sentence = False, None, None
        if second is not None and first.history is not None and first.rows:
            answer, reranked = await self._ranked_again(dense, first, answer, wider, second, deadline)
        if diversity is not None:
            answer = await _diversified(dense, answer, query.k, diversity)
        elif second is not None:
            answer = replace(answer, rows=answer.rows[: query.k], scores=answer.scores[: query.k])
        if explain and first.history is not None and answer.rows:
            answer, explanation, sentence = await self._explained(dense, first, answer, deadline, speaker)
        return StagedAnswer(answer, reranked, explanation, sentence)

    async def _ranked_again(
        self,
        dense: DenseRecommender,
        first: Recommendation,
        answer: Recommendation,
        query: RecommendQuery,
        second: SecondStage,
        deadline: float,
    ) -> tuple[Recommendation, bool]:
        assert first.history is not None
        ids = dense.catalog.item_ids
        row_of = {ids[row]: row for row in first.rows if dense.catalog.remembers(row)}
        candidates = list(row_of)
        history = parts_as_items(first.history.items, dense.parts.catalog)
        asked = RankQuery(history, query.user_id, candidates, whole=True)
        started = time.monotonic()
        try:
            ranking = await second.ranker.rank(asked, self._until(deadline))
            if ranking.source == "popular" or ranking.candidates.unknown:
                raise NothingUsable(
                    f"it cannot score {len(ranking.candidates.unknown)} candidates, or knows nothing of the history"
                )
        except TooLarge as error:
            raise TooLarge(error.message, field="rerank.candidates") from error
        except PASSING as error:
            self._metrics.reranks("degraded").inc()
            self._note(RERANK, second.ranker.parts.name, error)
            return _without(answer, RERANK, started), False
        self._metrics.reranks("ranked").inc()
        self._metrics.rank_candidates(second.ranker.parts.recipe).observe(len(candidates))
        names = second.ranker.catalog.item_ids
        rows = [row_of[names[row]] for row in ranking.items if not isinstance(row, str)]
        seconds = answer.seconds | {RERANK: time.monotonic() - started}
        return replace(
            answer, rows=rows[: query.k], scores=ranking.scores[: query.k], seconds=seconds, vector_D=None
        ), True

    async def _explained(
        self,
        dense: DenseRecommender,
        first: Recommendation,
        answer: Recommendation,
        deadline: float,
        speaker: Speaker | None,
    ) -> tuple[Recommendation, Explanation | None, WrittenSentence | None]:
        started = time.monotonic()
        answer = dense.shown(answer)
        saying = asyncio.create_task(self._sentence(dense, first, answer, deadline, speaker))
        try:
            explanation = await dense.explain(first, answer.rows, self._until(deadline))
            sentence = await saying
        except PASSING as error:
            self._metrics.explanations("degraded").inc()
            self._note(EXPLAIN, dense.parts.name, error)
            return _without(answer, EXPLAIN, started), None, None
        finally:
            saying.cancel()
        if sentence is not None and sentence.reason in MISSED:
            answer = replace(answer, degraded=[*answer.degraded, SENTENCE])
        return replace(answer, seconds=answer.seconds | {EXPLAIN: time.monotonic() - started}), explanation, sentence

    async def _sentence(
        self,
        dense: DenseRecommender,
        first: Recommendation,
        answer: Recommendation,
        deadline: float,
        speaker: Speaker | None,
    ) -> WrittenSentence | None:
        """Return the sentence about the first item; None where there is no item."""
        if first.history is None or not answer.rows:
            return None
        read, row = dense.catalog.trained.titles, answer.rows[0]
        history = [part if isinstance(part, str) else read[part] for part in first.history.parts]
        end = min(time.monotonic() + self._patience_s, deadline - MARGIN_S)
        found = await write_sentence(speaker, row, dense.catalog.titles[row], history, end)
        result = "degraded" if found.reason in MISSED else "absent" if found.text is None else "generated"
        self._metrics.sentences(result).inc()
        return found

    def _until(self, deadline: float) -> float:
        """Return when a stage that begins now has to end; raises DeadlineExceeded where it need not begin."""
        now = time.monotonic()
        end = min(now + self._patience_s, deadline - MARGIN_S)
        if end <= now:
            raise DeadlineExceeded("no time is left for another stage")
        return end

    @staticmethod
    def _note(stage: str, artifact: str, error: AnyoError) -> None:
        log.warning("answering without a stage", stage=stage, artifact=artifact, error=error.message)


async def _diversified(dense: DenseRecommender, answer: Recommendation, k: int, wanted: Diversity) -> Recommendation:
    """Choose k items of a longer answer; on a thread, since many candidates take milliseconds. Raises Overloaded,
    DeadlineExceeded."""
    started = time.monotonic()
    catalog, index = dense.catalog, dense.items.index  # of one moment
    assert index is not None, "a dense artifact has an index"
    kept = [(row, score) for row, score in zip(answer.rows, answer.scores, strict=True) if catalog.is_open(row)]
    rows, scores = [row for row, _ in kept], [score for _, score in kept]
    categories = [catalog.categories[row] for row in rows]
    places = await dense.histories.aside(
        partial(choose, scores, categories, k, wanted, lambda: index.alike_to(index.keys(np.array(rows, np.int64))))
    )
    seconds = answer.seconds | {DIVERSIFY: time.monotonic() - started}
    return replace(
        answer, rows=[rows[place] for place in places], scores=[scores[place] for place in places], seconds=seconds
    )


def _without(answer: Recommendation, stage: str, started: float) -> Recommendation:
    seconds = answer.seconds | {stage: time.monotonic() - started}
    return replace(answer, degraded=[*answer.degraded, stage], seconds=seconds)


def first_places(items: Sequence[str]) -> Sequence[str]:
    """Return the part of a ranking by which two are compared: the first ten, of fewer than twenty the first half."""
    return items[: max(1, min(10, len(items) // 2))]
