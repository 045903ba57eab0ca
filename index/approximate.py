"""Common part of the approximate kinds of index: exact search where filters leave little, and the recall they state."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from index.base import FloatArray, Mask, RowArray, SearchError, StoredIndex, in_order

NARROW_SHARE = 0.1
"""Share of the rows that a filter must leave open for a search that follows links or cells."""
NARROW_ROWS = 1000
"""Open rows up to which an exact search is as quick."""


class ApproximateIndex(StoredIndex):
    """An index that may miss some of the k best rows.

    It answers with fewer than k rows only where fewer are eligible: what its own search does not fill, an exact search
    does. Rows found have their true inner products, sorted by (-score, row).
    """

    exact: ClassVar[bool] = False

    @abstractmethod
    def _candidates(self, queries_BD: FloatArray, k: int, open_N: Mask | None) -> tuple[FloatArray, RowArray]:
        """At least k rows found for every query and their inner products; row -1 at the end where fewer were."""

    @abstractmethod
    def _exact(self, queries_BD: FloatArray, k: int, eligible: int, open_N: Mask | None) -> tuple[FloatArray, RowArray]:
        """The answer of exact search, as `_top` gives it."""

    def exact_search(self, queries_QD: FloatArray, k: int) -> tuple[FloatArray, RowArray]:
        """The k best rows of every query, or all where there are fewer, by exact search over the same vectors; raises
        as `search`."""
        return self._exact(self._checked_queries(queries_QD, k), min(k, self.size), self.size, None)

    def _narrow(self, k: int, eligible: int) -> bool:
        """Whether so few rows are open that an exact search is as quick."""
        return eligible <= max(k, NARROW_ROWS) or eligible < NARROW_SHARE * self.size

    def _top(self, queries_BD: FloatArray, k: int, eligible: int, open_N: Mask | None) -> tuple[FloatArray, RowArray]:
        if self._narrow(k, eligible):
            return self._exact(queries_BD, k, eligible, open_N)
        scores_BW, rows_BW = self._candidates(queries_BD, k, open_N)
        found_BW = rows_BW >= 0
        if not np.isfinite(scores_BW[found_BW]).all():
            raise SearchError("an inner product overflows float32; item vectors or queries are far too large")
        scores_BK, rows_BK = in_order(np.where(found_BW, scores_BW, -np.inf), rows_BW, k)
        short = np.flatnonzero((rows_BK < 0).any(axis=1))
        if short.size:
            scores_BK, rows_BK = scores_BK.copy(), rows_BK.copy()
            scores_BK[short], rows_BK[short] = self._exact(queries_BD[short], k, eligible, open_N)
        return scores_BK, rows_BK


def overlaps(found: Iterable[RowArray], exact: Iterable[RowArray]) -> list[float]:
    """For every query, the share of the rows of an exact answer (-1 left out) that another one has too."""
    shares = []
    for found_K, exact_K in zip(found, exact, strict=True):
        wanted = set(exact_K[exact_K >= 0].tolist())
        shares.append(len(wanted & set(found_K.tolist())) / len(wanted) if wanted else 1.0)
    return shares
