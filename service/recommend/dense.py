"""From a request to recommended rows, the dense way: history, cache, model, search.

Knows neither HTTP nor JSON. One recommender serves one artifact.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from index.base import Keys
from modeling.encoder.prompt import FreeItem, Prompt
from modeling.encoder.user_encoder import CannotReadText
from modeling.inference.encoder_forward import EncoderForward
from modeling.inference.prefix_cache import PrefixCache
from service.artifacts.loading import LoadedArtifact
from service.caches.local import VectorCache, history_key
from service.caches.shared import ArtifactCache, CacheHit, CacheKeys
from service.engine.base import failed
from service.engine.batcher import Limits
from service.engine.cpu import set_model_threads, shares
from service.engine.dense import Engine
from service.engine.device_lock import DeviceLock
from service.engine.work import Candidates, Found, Hits, Work
from service.errors import AnyoError, Conflict, shown
from service.items.artifact_items import ArtifactItems
from service.observability.metrics import Metrics
from service.recommend.base import BaseRecommender, Recommendation, Source
from service.recommend.explaining import Explainer, Explanation
from service.recommend.histories import NO_ROWS, Histories, History
from service.recommend.ranking import Ranking, ranked, ranked_by_popularity, resolve_candidates
from service.recommend.requests import RankQuery, RecommendQuery
from service.settings import Settings
from service.stores.guarded import GuardedStore

NOTHING_KNOWN = CacheHit()
ENOUGH_POSITIONS = {"fp32": 320, "bf16": 640, "int8": 640}
"""Tokens at which a batch on a CPU is full: a larger one makes every request in it wait longer and raises throughput
little or not at all (docs/benchmarks/service-parts.md). The faster the matrix products, the larger the share of the
fixed cost of a pass, which a batch divides among its requests."""


class DenseRecommender(BaseRecommender):
    """Answers requests with one dense artifact; `start` before the first, `close` after the last."""

    kind: Literal["dense"] = "dense"
    ranks = True

    def __init__(
        self,
        parts: LoadedArtifact,
        store: GuardedStore,
        settings: Settings,
        metrics: Metrics,
        shared: ArtifactCache | None = None,
        rate: float = 0.0,
        device: DeviceLock | None = None,
    ) -> None:
        self.parts = parts
        self._shared = shared
        items = ArtifactItems(parts, settings, metrics)
        self._metrics = metrics
        metrics.rank_candidates(parts.recipe)  # there from the start, so that none can be told from zero
        self._vectors = VectorCache(settings.user_cache_entries, parts.index.dim)
        self._fast = fast = cast("EncoderForward | None", getattr(parts.encoder, "fast", None))
        self._positions = ENOUGH_POSITIONS[parts.precision] if settings.device == "cpu" else None
        limits = Limits(
            settings.max_batch_tokens,
            settings.max_batch_requests,
            settings.max_queued_tokens,
            settings.max_batch_padding,
            packed=fast is not None,
            enough=self._positions,
        )
        self._cores = shares(settings.lanes, settings.threads, settings.device)
        reused = fast is not None and settings.reuse_mib and fast.encoder.capabilities.prefix_reuse
        self.states = PrefixCache(fast, settings.reuse_mib << 20) if fast and reused else None
        self.engine = Engine(
            parts.encoder.encode if self.states is None else self._encode,
            self.search,
            limits,
            metrics,
            stall_seconds=settings.stall_seconds,
            queue_seconds=settings.max_queue_seconds,
            rate=rate,
            device=device,
            lanes=self._cores.lanes,
            before_pass=self._before_pass,
        )
        block = 1 if self.states is None else min(settings.reuse_block, parts.encoder.history_limit)
        histories = Histories(parts, store, settings, metrics, catalog=items.catalog, block=block)
        super().__init__(histories, self.engine, items)
        self._explainer = Explainer(parts, items, self.histories, self.engine, self._vectors, metrics)

    def _encode(self, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        """Encode with what is kept of each history's beginning."""
        assert self.states is not None
        return self.states.encode(prompts, self._looked_up)

    def _looked_up(self, hits: int, misses: int) -> None:
        self._metrics.cache_requests("states", "hit").inc(hits)
        self._metrics.cache_requests("states", "miss").inc(misses)

    def _before_pass(self, alone: bool) -> None:
        set_model_threads(self._cores.alone if alone else self._cores.threads)

    def meet_lengths(self) -> None:
        """Have products prepared for all positions of a usual batch, with either number of threads. Blocks."""
        if self._fast is None or self._positions is None:
            return
        for alone in {self._cores.threads: False, self._cores.alone: True}.values():
            self._before_pass(alone)
            self._fast.meet_lengths(self._positions)

    async def recommend(self, query: RecommendQuery, deadline: float, *, cached: bool = True) -> Recommendation:
        """Answer one request before `deadline` (a time of `time.monotonic`); not `cached`: compute it in any case.

        Raises InvalidInput, NothingUsable, Conflict, TooLarge, Overloaded, ModelError, NotReady,
        DeadlineExceeded.
        """
        with self._answering():
            return await self._recommend(query, deadline, cached)

    async def rank(self, query: RankQuery, deadline: float) -> Ranking:
        """Order the candidates of one request by their scores for the user's vector, before `deadline`; raises as
        `recommend`."""
        with self._answering():
            return await self._rank(query, deadline)

    async def explain(self, answer: Recommendation, rows: Sequence[int], deadline: float) -> Explanation | None:
        """Say why some of the rows of an answer of this recommender are in it; None where it is popular items. Raises
        Conflict, Overloaded, ModelError, NotReady, DeadlineExceeded."""
        with self._answering():
            return await self._explainer.explain(answer, rows, deadline)

    async def _recommend(self, query: RecommendQuery, deadline: float, cached: bool) -> Recommendation:
        history = await self.histories.of(query)
        if not history.parts:
            rows, scores = await self.histories.popular(query, history)
            return Recommendation(rows, scores, "popular", history.ignored, history.degraded, history.seconds)
        started = time.monotonic()
        work, key, vector_key, question, known = await self._assemble(query, history, deadline, cached)
        seconds = history.seconds | {"assemble": time.monotonic() - started}
        if known.result is not None:
            if self.catalog.changed:  # meanwhile
                return await self._recommend(query, deadline, cached)
            return Recommendation(*known.result, "cache", history.ignored, history.degraded, seconds, None, history)
        found = await self._run(work, key, vector_key, deadline)
        source: Source = "model" if work.vector_D is None else "cache"
        while (again := await self._again(work, found, query, history)) is not None:
            found = await self.engine.run(again, (key, self.catalog.generation), deadline)
        answer = _answer(found, history, seconds, source)
        if self._shared is not None and question is not None and not self.catalog.changed:
            computed_D = found.vector_D if work.vector_D is None else None
            self._shared.remember(question, computed_D, answer.rows, answer.scores)
        return answer

    async def _rank(self, query: RankQuery, deadline: float) -> Ranking:
        history = await self.histories.of(query)
        found, index = resolve_candidates(query, self.catalog), self.items.index  # of one moment
        started = time.monotonic()
        free_FW = await self._free_keys(found.titles, deadline)
        if not history.parts:
            return ranked_by_popularity(found, self.catalog, history)
        vector_key, vector_D, question, _ = await self._look_up(
            history, True, lambda shared: shared.vector_question(history.parts)
        )
        prompt, positions = await self._prompt(history, deadline) if vector_D is None else (None, 0)
        assert index is not None, "a dense artifact has an index"
        candidates = Candidates(np.array(found.rows, np.int64), free_FW, index)
        work = Work(prompt, len(found.parts), NO_ROWS, None, vector_D, positions, candidates)
        seconds = history.seconds | {"assemble": time.monotonic() - started}
        scored = await self._run(work, (vector_key, tuple(found.parts)), vector_key, deadline)
        if self._shared is not None and question is not None and vector_D is None:
            self._shared.remember(question, scored.vector_D, (), ())
        source: Source = "model" if vector_D is None else "cache"
        return ranked(found, scored.scores_K, source, history, seconds | scored.seconds)

    async def _free_keys(self, titles: Sequence[str], deadline: float) -> Keys:
        """Return item vectors [F, D] of free titles among the candidates; raises Conflict where there are none."""
        if not titles:
            return self.parts.index.keys(NO_ROWS)
        items = cast("Sequence[FreeItem]", await self.histories.read(titles, deadline, "candidates"))
        try:
            return await self.histories.aside(partial(self.parts.encoder.free_vectors, items))
        except CannotReadText as error:
            raise Conflict(
                f"candidates holds the free title {shown(titles[0])}, and artifact {self.parts.name!r} (recipe "
                f"{self.parts.recipe!r}) cannot score it: {error}; send item ids of the catalog",
                field="candidates",
                code="cannot_read_text",
            ) from None
        except AnyoError:
            raise
        except Exception as error:
            raise failed(error) from error

    async def _run(self, work: Work, key: Hashable, vector_key: bytes, deadline: float) -> Found:
        """Compute, and keep a vector that was not known."""
        found = await self.engine.run(work, key, deadline)
        if work.vector_D is None:
            self._vectors.put(vector_key, found.vector_D)
        return found

    async def _again(self, work: Work, found: Found, query: RecommendQuery, history: History) -> Work | None:
        """The work of a second search where items changed while the answer was computed; None where it is valid."""
        if not self.catalog.changed:
            return None
        rows = found.rows_K.tolist()
        exclude = self.histories.excluded(query, history)  # an item that was taken may have a new row
        if all(map(self.catalog.is_open, rows)) and not set(rows) & set(exclude.tolist()):
            return None
        allowed = await self.histories.allowed(query.wanted)
        return replace(work, prompt=None, vector_D=found.vector_D, exclude=exclude, allowed=allowed)

    def search(self, user_BD: NDArray[np.float32], works: Sequence[Work]) -> list[Hits]:
        """Search the index for several requests, one call for each category filter among them, and score the
        candidates of others. Blocks."""
        hits: list[Hits] = [(NO_ROWS, np.empty(0, np.float32))] * len(works)
        groups: dict[int, list[int]] = {}
        index = self.items.index  # as it is now: no older than what any of these requests saw
        assert index is not None
        for place, work in enumerate(works):
            if work.candidates is None:
                groups.setdefault(id(work.allowed), []).append(place)
            else:
                scores_C = _score(user_BD[place], work.candidates)
                hits[place] = np.arange(len(scores_C)), scores_C
        for places in groups.values():
            k = max(works[place].k for place in places)
            exclude = [works[place].exclude for place in places]
            first = works[places[0]]
            scores_BK, rows_BK = index.search(user_BD[places], k, exclude, first.allowed, first.wanted)
            for place, scores_K, rows_K in zip(places, scores_BK, rows_BK, strict=True):
                eligible = min(works[place].k, int(np.count_nonzero(rows_K >= 0)))
                hits[place] = rows_K[:eligible], scores_K[:eligible]
        return hits

    def _shares_answers(self) -> bool:
        """Answers are shared between replicas until the first item changes; user vectors are always."""
        return self._shared is not None and self._shared.shares_answers and not self.catalog.changed

    # -- putting a request together --------------------------------------------------------------------------

    async def _assemble(
        self, query: RecommendQuery, history: History, deadline: float, cached: bool
    ) -> tuple[Work, Hashable, bytes, CacheKeys | None, CacheHit]:
        """Return the work, a key that identical requests share, the key of the user vector, and what replicas share."""
        exclude = self.histories.excluded(query, history)
        wanted = query.wanted
        k = max(1, min(query.k, len(self.catalog)))
        changes = self.catalog.generation
        vector_key, vector_D, question, known = await self._look_up(
            history,
            cached,
            lambda shared: shared.question(history.parts, k, exclude, repr(wanted), whole=self._shares_answers()),
        )
        unread = vector_D is None and known.result is None
        prompt, positions = await self._prompt(history, deadline) if unread else (None, 0)
        allowed = await self.histories.allowed(wanted)
        work = Work(prompt, k, exclude, allowed, vector_D, positions, wanted=wanted)
        return work, (vector_key, k, exclude.tobytes(), wanted, changes), vector_key, question, known

    async def _look_up(
        self, history: History, cached: bool, keys: Callable[[ArtifactCache], CacheKeys]
    ) -> tuple[bytes, NDArray[np.float32] | None, CacheKeys | None, CacheHit]:
        """Return the key of the user vector, the vector where it is known, and what replicas share; `keys` are those of
        the request in the shared cache."""
        vector_key = history_key(history.parts)
        vector_D = self._vectors.get(vector_key) if cached else None
        if self._vectors.capacity and cached:
            self._metrics.cache_requests("user_vector", "miss" if vector_D is None else "hit").inc()
        question, known = None, NOTHING_KNOWN
        if cached and self._shared is not None and (vector_D is None or self._shares_answers()):
            question = keys(self._shared)
            known = await self._shared.look_up(question, want_vector=vector_D is None)
            if known.vector_D is not None:
                vector_D = known.vector_D
                self._vectors.put(vector_key, vector_D)
        return vector_key, vector_D, question, known

    async def _prompt(self, history: History, deadline: float) -> tuple[Prompt, int]:
        """Return the prompt of a history, and the positions of it that have to be read (0: all)."""
        prompt = self.parts.encoder.prepare(await self.histories.readable(history, deadline))
        return prompt, self.states.new_positions(prompt) if self.states is not None else 0


def _answer(found: Found, history: History, seconds: dict[str, float], source: Source) -> Recommendation:
    return Recommendation(
        found.rows_K.tolist(),
        found.scores_K.tolist(),
        source,
        history.ignored,
        history.degraded,
        seconds | found.seconds,
        found.vector_D,
        history,
    )


def _score(user_D: NDArray[np.float32], candidates: Candidates) -> NDArray[np.float32]:
    index, rows_C = candidates.index, candidates.rows_C
    keys_CW = np.concatenate([index.keys(rows_C), candidates.free_FW])
    found_C: NDArray[np.float32] = index.scores(user_D[None], keys_CW)[0]
    return found_C
