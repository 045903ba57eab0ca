"""Why an item was recommended: what each item of the history adds to its score, and which of them is most like it.

Both are computed from the model's own scores, not made up after the fact:

* leaving one out: the score minus the score for the same history without that item, read as if it had been sent so (an
  older item may come into the window). One vector for each item of the history, computed with the other requests of
  the engine and kept, so that other answers to the same history cost a product;
* the nearest item of the history: the one that has the largest cosine with the recommended item, of their vectors or,
  where items are counted, of their rows in the table of counts.

Shape legend: H items of the history that the model reads, K recommended items, D item dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from index.base import ItemIndex
from modeling.encoder.prompt import Prompt
from service.artifacts.loading import LoadedArtifact
from service.caches.local import ArrayCache, VectorCache, history_key
from service.engine.dense import Engine
from service.engine.work import Candidates, Work
from service.items.artifact_items import ArtifactItems
from service.observability.metrics import Metrics
from service.recommend.base import Recommendation, together
from service.recommend.histories import NO_ROWS, Histories, History

HISTORIES_KEPT, KEPT_BYTES = 4096, 64 << 20  # whose vectors with one item left out are kept, and their memory


@dataclass(frozen=True, slots=True)
class Explanation:
    """Of K rows, for H items of the history (rows and free titles, oldest first).

    `influence_KH` is None where the history has one item: without it there is no score to compare with. `nearest_K` is
    the place of the most similar item of the history, -1 where none of them has a vector, `cosine_K` how similar it is.
    """

    history: list[int | str]
    influence_KH: NDArray[np.float32] | None
    nearest_K: NDArray[np.int64]
    cosine_K: NDArray[np.float32]

    def of(self, places: Sequence[int]) -> Explanation:
        """Return that of some of the rows, by their places."""
        kept = list(places)
        influence_KH = None if self.influence_KH is None else self.influence_KH[kept]
        return replace(self, influence_KH=influence_KH, nearest_K=self.nearest_K[kept], cosine_K=self.cosine_K[kept])


class Explainer:
    """Explains answers of one dense artifact."""

    def __init__(
        self,
        parts: LoadedArtifact,
        items: ArtifactItems,
        histories: Histories,
        engine: Engine,
        vectors: VectorCache,
        metrics: Metrics,
    ) -> None:
        self._parts, self._items, self._histories, self._engine = parts, items, histories, engine
        self._vectors, self._metrics = vectors, metrics
        self._kept: ArrayCache[NDArray[np.float32]] = ArrayCache(HISTORIES_KEPT, KEPT_BYTES)

    async def explain(self, answer: Recommendation, rows: Sequence[int], deadline: float) -> Explanation | None:
        """See `DenseRecommender.explain`."""
        history = answer.history
        if history is None or not rows:
            return None
        index = self._items.index  # of this moment: it has the rows, whatever is withdrawn meanwhile
        assert index is not None
        score_of = dict(zip(answer.rows, answer.scores, strict=True))
        scores_K = np.array([score_of[row] for row in rows], np.float32)
        without_HD = await self._without_each(history, deadline)
        return await self._histories.aside(
            partial(explained, index, list(history.parts), np.array(rows, np.int64), scores_K, without_HD)
        )

    async def _without_each(self, history: History, deadline: float) -> NDArray[np.float32] | None:
        """Return the vectors [H, D] of the history without each of its items; None where it has one only."""
        items = list(history.items)
        if len(items) < 2:
            return None
        start = self._histories.window(items[1:])  # of the history without one of its newer items
        key = history_key([len(history.parts), *items[start:]])
        known_HD = self._kept.get(key)
        if known_HD is not None:
            self._metrics.explanations("cached").inc()
            return known_HD
        later = items[start:]
        read = await self._histories.read(later, deadline)
        prepare = self._parts.encoder.prepare
        first = len(later) - len(history.parts)

        def left(place: int) -> tuple[bytes, Prompt]:
            return history_key(later[:place] + later[place + 1 :]), prepare([*read[:place], *read[place + 1 :]])

        found = await together(
            self._vector(*left(place), deadline, further=place > first) for place in range(first, len(later))
        )
        without_HD = np.stack(found)
        self._kept.put(key, without_HD)
        self._metrics.explanations("computed").inc()
        return without_HD

    async def _vector(self, key: bytes, prompt: Prompt, deadline: float, *, further: bool) -> NDArray[np.float32]:
        known_D = self._vectors.get(key)
        if known_D is not None:
            return known_D
        index = self._parts.index
        nothing = Candidates(NO_ROWS, index.keys(NO_ROWS), index)
        work = Work(prompt, 0, NO_ROWS, candidates=nothing, further=further)
        return (await self._engine.run(work, (key, "vector"), deadline)).vector_D


def explained(
    index: ItemIndex,
    history: list[int | str],
    rows_K: NDArray[np.int64],
    scores_K: NDArray[np.float32],
    without_HD: NDArray[np.float32] | None,
) -> Explanation:
    """Return the explanation of rows with these scores. Blocks."""
    keys_KW = index.keys(rows_K)
    influence_KH = None if without_HD is None else scores_K[:, None] - index.scores(without_HD, keys_KW).T
    places = [place for place, part in enumerate(history) if not isinstance(part, str)]
    nearest_K, cosine_K = np.full(len(rows_K), -1), np.zeros(len(rows_K), np.float32)
    if places:
        read_PW = index.keys(np.array([history[place] for place in places], np.int64))
        cosine_KP = index.cosines(keys_KW, read_PW)
        best_K = cosine_KP.argmax(1)
        nearest_K, cosine_K = np.array(places)[best_K], cosine_KP[np.arange(len(rows_K)), best_K]
    return Explanation(history, influence_KH, nearest_K, cosine_K)
