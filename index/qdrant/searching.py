"""The index whose candidates come from an engine and whose scores come from the artifact's own vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from qdrant_client import models

from index.base import FEW, Eligible, FloatArray, Mask, RowArray, SearchError, VectorIndex, in_order
from index.filters.language import Filter
from index.qdrant.engine import Engine
from index.qdrant.filling import Held
from index.unavailable import SearchUnavailable

NARROW_ROWS = 1000
"""Rows that a filter leaves up to which reading their vectors is as quick as asking the engine."""
SPARE = 16
"""Candidates asked for beyond k, so that few closed rows and equal scores need no second question."""
WIDER, ROUNDS = 8, 3
"""How much more is asked for where too few candidates were open, and how often it is asked at most."""


@dataclass(frozen=True)
class SearchOptions:
    """How an engine is asked.

    Attributes:
        effort: candidates that a search of the engine looks at (``hnsw_ef``); 0: as the engine has it.
        exact: the engine looks at every point, and the answer is that of exact search.
        refuse: a search fails while the engine is away; else it is answered by exact search over the mapped vectors.
    """

    effort: int = 0
    exact: bool = False
    refuse: bool = False


class QdrantIndex(VectorIndex):
    """Inner product search by an engine, its candidates scored exactly. Rows that may not be answered with never are,
    whatever the engine says; fewer than k rows come only where fewer are eligible.

    Args:
        engine: that has opened what is held.
        held: the collection.
        fell_back: is called for every search that the engine was to answer and did not.
    """

    def __init__(
        self, engine: Engine, held: Held, options: SearchOptions, fell_back: Callable[[], None] = lambda: None
    ) -> None:
        self._engine, self._held, self._options, self._fell_back = engine, held, options, fell_back
        self._vectors = held.vectors
        self.exact = options.exact  # type: ignore[misc]
        given = models.SearchParams(hnsw_ef=options.effort or None, exact=options.exact)
        self._parameters = None if engine.address.embedded else given  # the embedded one looks at every point

    @property
    def size(self) -> int:
        """N, the number of item vectors."""
        return self._vectors.size

    @property
    def dim(self) -> int:
        """D, the width of a vector."""
        return self._vectors.dim

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors that are read at a time; the others are on the disk."""
        return self._vectors.nbytes

    def trouble(self) -> str | None:
        """Why searches fail now; None while they are answered, by whichever way."""
        return self._engine.away if self._options.refuse else None

    def vectors(self, rows_R: RowArray | None = None) -> FloatArray:
        """A copy of the item vectors, float32 [N, D], or of those of some rows, [R, D]; the engine is not asked."""
        return self._vectors.vectors(None if rows_R is None else self._checked_rows(rows_R, "rows"))

    def _search(self, queries_BD: FloatArray, k: int, among: Eligible) -> tuple[FloatArray, RowArray]:
        open_N = self._mask(among.allowed)
        eligible = self.size if open_N is None else int(np.count_nonzero(open_N))
        unknown = among.wanted is None and 2 * eligible < self.size  # rows alone: most candidates would be none of them
        if open_N is not None and (eligible <= max(NARROW_ROWS, 4 * k) or unknown):
            return self._vectors._search(queries_BD, k, among)
        question = _Question(queries_BD, k, among.exclude, open_N, eligible)
        passing = None if open_N is None else cast("Filter | None", among.wanted)
        try:
            self._ask(question, None if passing is None else self._held.payload.condition(passing))
        except SearchUnavailable:
            if self._options.refuse:
                raise
            self._fell_back()
            return self._vectors._search(queries_BD, k, among)
        for query in question.pending:
            own = None if among.exclude is None else [among.exclude[query]]
            scores_1K, rows_1K = self._vectors._search(queries_BD[query : query + 1], k, replace(among, exclude=own))
            question.scores_BK[query], question.rows_BK[query] = scores_1K[0], rows_1K[0]
        return question.scores_BK, question.rows_BK

    def _ask(self, question: _Question, condition: models.Filter | None) -> None:
        """Answer what the engine finds enough for; what is left is pending."""
        for turn in range(ROUNDS):
            if not question.pending:
                return
            limits = {query: question.limit(query, turn, self.size) for query in question.pending}
            requests = [
                models.QueryRequest(
                    query=question.queries_BD[query].tolist(),
                    filter=_without(condition, question.excluded(query)),
                    limit=limit,
                    params=self._parameters,
                    with_payload=False,
                )
                for query, limit in limits.items()
            ]
            answers = self._engine.search(self._held.name, requests)
            if len(answers) != len(requests):
                raise SearchUnavailable(f"the index engine gave {len(answers)} answers to {len(requests)} queries")
            for (query, limit), rows in zip(limits.items(), answers, strict=True):
                self._take(question, query, limit, rows)

    def _take(self, question: _Question, query: int, limit: int, rows: RowArray) -> None:
        if len(rows) and (rows.min() < 0 or rows.max() >= self.size or len(np.unique(rows)) != len(rows)):
            raise SearchUnavailable(f"the index engine names items that collection {self._held.name} does not have")
        scores = self._vectors.vectors(rows) @ question.queries_BD[query]
        if not np.isfinite(scores).all():
            raise SearchError("an inner product overflows float32; item vectors or queries are far too large")
        kept = question.open(query, rows)
        wanted = min(question.k, question.eligible_for(query))
        if int(np.count_nonzero(kept)) < wanted:
            return
        found_scores, found_rows = in_order(scores[kept][None], rows[kept][None], question.k)
        # What ties with the last candidate may be beyond it.
        if self.exact and wanted and len(rows) == limit < self.size and found_scores[0, wanted - 1] <= scores.min():
            return
        question.scores_BK[query, :wanted] = found_scores[0, :wanted]
        question.rows_BK[query, :wanted] = found_rows[0, :wanted]
        question.pending.remove(query)


class _Question:
    """Queries with what is closed to each, and their answers so far."""

    def __init__(
        self, queries_BD: FloatArray, k: int, exclude: Sequence[RowArray] | None, open_N: Mask | None, eligible: int
    ) -> None:
        self.queries_BD, self.k, self._exclude, self._open_N, self._eligible = queries_BD, k, exclude, open_N, eligible
        self.scores_BK = np.full((len(queries_BD), k), -np.inf, np.float32)
        self.rows_BK = np.full((len(queries_BD), k), -1, np.int64)
        self.pending = list(range(len(queries_BD)))

    def excluded(self, query: int) -> RowArray:
        """Rows that one query is not answered with."""
        return np.empty(0, np.int64) if self._exclude is None else self._exclude[query]

    def eligible_for(self, query: int) -> int:
        """Rows that one query may be answered with."""
        closed = np.unique(self.excluded(query))
        return self._eligible - (len(closed) if self._open_N is None else int(np.count_nonzero(self._open_N[closed])))

    def limit(self, query: int, turn: int, size: int) -> int:
        """Candidates to ask for; a few excluded rows are dropped from them, many are left out by the engine."""
        few = len(self.excluded(query))
        wider: int = WIDER**turn
        return min(size, (self.k + (few if few <= FEW else 0) + SPARE) * wider)

    def open(self, query: int, rows: RowArray) -> Mask:
        """Which of some rows a query may be answered with."""
        kept: Mask = ~np.isin(rows, self.excluded(query))
        return kept if self._open_N is None else kept & self._open_N[rows]


def _without(condition: models.Filter | None, excluded: RowArray) -> models.Filter | None:
    """A condition and not these rows, where they are too many to be dropped afterwards."""
    if len(excluded) <= FEW:
        return condition
    closed = models.HasIdCondition(has_id=np.unique(excluded).tolist())
    return models.Filter(must=None if condition is None else [condition], must_not=[closed])
