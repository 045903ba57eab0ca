"""An index over a sparse table of items by items: counts of transitions, or similarities.

The score of an item is its prior plus the weighted entries of the table in the rows of the newest items of a history.
That is an inner product of two sparse vectors, which are as wide as the catalog; here a query is written as the few
numbers that it depends on: ``[prior, r1, r2, …]``, the weight of the prior and one more than each row, newest first, 0
where there is none. Rows are exact in float32 up to `MOST_ITEMS`.

Shape legend: N items, E entries of the table, B queries, L = D - 1 newest items of a query.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from index.base import FloatArray, ItemIndex, Keys, Mask, RowArray, SearchError

MOST_ITEMS = (1 << 24) - 2


class TableIndex(ItemIndex):
    """Items by the rows of a table.

    Args:
        prior_N: score of every item, whatever the query.
        offsets_N1: where the entries of each row of the table begin, [N + 1].
        columns_E: items that the entries stand for, distinct within a row.
        values_E: the entries, none below 0.
        last: L, most items of a query.
        decay: weight of an item of a query relative to the one after it.

    Raises:
        SearchError: no items, or more than `MOST_ITEMS`.
    """

    unrelated = 0.0

    def __init__(
        self,
        prior_N: npt.NDArray[np.float64],
        offsets_N1: npt.NDArray[np.int64],
        columns_E: npt.NDArray[np.int32],
        values_E: npt.NDArray[np.float32],
        *,
        last: int,
        decay: float,
    ) -> None:
        if not 1 <= len(prior_N) <= MOST_ITEMS:
            raise SearchError(f"a table of {len(prior_N):,} items cannot be searched; 1 to {MOST_ITEMS:,} are allowed")
        self._prior_N, self._offsets_N1, self._columns_E, self._values_E = prior_N, offsets_N1, columns_E, values_E
        self._last, self._decay = last, decay

    @property
    def size(self) -> int:
        """N, the number of items."""
        return len(self._prior_N)

    @property
    def dim(self) -> int:
        """D, the width of a query: its newest items, and the weight of the prior."""
        return self._last + 1

    @property
    def nbytes(self) -> int:
        """Bytes of the table and of the prior."""
        return sum(each.nbytes for each in (self._prior_N, self._offsets_N1, self._columns_E, self._values_E))

    def queries(self, histories: Sequence[Sequence[int] | npt.NDArray[np.integer]], *, prior: float = 1) -> FloatArray:
        """Queries [B, D] of histories of catalog rows, oldest first; rows of no item of the table are passed over."""
        found_BD = np.zeros((len(histories), self.dim), np.float32)
        found_BD[:, 0] = prior
        for query_D, history in zip(found_BD, histories, strict=True):
            newest = np.asarray(history[-self._last :], np.int64)[::-1]
            query_D[1 : len(newest) + 1] = np.where(newest < self.size, newest + 1, 0)
        return found_BD

    def row(self, row: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Columns and values of the entries of one row."""
        begin, end = self._offsets_N1[row : row + 2]
        return self._columns_E[begin:end], self._values_E[begin:end]

    def all_scores(self, query_D: FloatArray) -> npt.NDArray[np.float64]:
        """Scores of all items [N] for one query."""
        sums_N = np.zeros(self.size)
        rows_T, sums_T = self._sums(query_D)
        sums_N[rows_T] = sums_T
        found_N: npt.NDArray[np.float64] = float(query_D[0]) * self._prior_N + sums_N
        return found_N

    def _sums(self, query_D: FloatArray) -> tuple[RowArray, npt.NDArray[np.float64]]:
        """Items that the rows of a query have entries for, ascending [T], and the sums of these."""
        found = [(self.row(row), self._decay**age) for age, row in self._looked_up(query_D)]
        columns_F = _joined([columns for (columns, _), _ in found])
        values_F = _joined([weight * values.astype(np.float64) for (_, values), weight in found])
        rows_T, places_F = np.unique(columns_F, return_inverse=True)
        sums_T: npt.NDArray[np.float64] = np.bincount(places_F, values_F, len(rows_T)).astype(np.float64)
        return rows_T.astype(np.int64), sums_T

    def _top(self, queries_BD: FloatArray, k: int, eligible: int, open_N: Mask | None) -> tuple[FloatArray, RowArray]:
        found = [self._best(query_D, k, open_N) for query_D in queries_BD]
        return np.stack([scores for scores, _ in found]), np.stack([rows for _, rows in found])

    def _best(self, query_D: FloatArray, k: int, open_N: Mask | None) -> tuple[FloatArray, RowArray]:
        """The k best open rows (None: of all), from those with entries and from the best of the others by the prior."""
        rows_T, sums_T = self._sums(query_D)
        others = self._by_prior if query_D[0] else np.arange(self.size)
        if open_N is not None:
            others, kept_T = others[open_N[others]], open_N[rows_T]
        others = others[: k + len(rows_T)]
        others = others[~np.isin(others, rows_T)]
        if open_N is not None:
            rows_T, sums_T = rows_T[kept_T], sums_T[kept_T]
        rows = np.concatenate([rows_T, others])
        scores = float(query_D[0]) * self._prior_N[rows]
        scores[: len(rows_T)] += sums_T
        return _first(scores.astype(np.float32), rows, k)

    @cached_property
    def _by_prior(self) -> RowArray:
        """All rows, by (-prior, row)."""
        return np.argsort(-self._prior_N.astype(np.float32), kind="stable")

    def _looked_up(self, query_D: FloatArray) -> Iterator[tuple[int, int]]:
        """Ages and rows of the items of a query."""
        rows_L = query_D[1:].astype(np.int64) - 1
        if not ((rows_L >= -1) & (rows_L < self.size)).all():
            raise SearchError(f"a query names row {rows_L.max()}; rows of this table run from 0 to {self.size - 1}")
        return ((age, row) for age, row in enumerate(rows_L.tolist()) if row >= 0)

    # -- an index ------------------------------------------------------------------------------------------------

    def keys(self, rows_R: RowArray) -> Keys:
        """See `ItemIndex.keys`: the rows themselves, [R, 1]."""
        return self._checked_rows(rows_R, "rows")[:, None]

    def scores(self, queries_BD: FloatArray, keys_RW: Keys) -> FloatArray:
        """See `ItemIndex.scores`."""
        return np.stack([self.all_scores(query_D)[keys_RW[:, 0]].astype(np.float32) for query_D in queries_BD])

    def cosines(self, keys_AW: Keys, keys_BW: Keys) -> FloatArray:
        """See `ItemIndex.cosines`: of the rows of the table, so that items are alike that lead to the same items."""
        here = [self.row(row) for row in keys_BW[:, 0].tolist()]
        offsets = np.cumsum([0, *(len(columns) for columns, _ in here)])
        columns_F, values_F = _joined([columns for columns, _ in here]), _joined([values for _, values in here])
        lengths_B = np.array([_length(values) for _, values in here])
        found_AB, whole_N = np.zeros((len(keys_AW), len(keys_BW)), np.float32), np.zeros(self.size)
        for place, row in enumerate(keys_AW[:, 0].tolist()):
            columns, values = self.row(row)
            whole_N[columns] = values
            sums = np.concatenate([[0.0], np.cumsum(whole_N[columns_F] * values_F)])
            whole_N[columns] = 0
            found_AB[place] = (sums[offsets[1:]] - sums[offsets[:-1]]) / (_length(values) * lengths_B)
        return found_AB.clip(-1, 1)

    def query_of(self, keys_RW: Keys) -> FloatArray:
        """See `ItemIndex.query_of`: a history of the item alone, without the prior."""
        return self.queries(list(keys_RW), prior=0)

    def over_keys(self, keys_MW: Keys) -> ItemIndex:
        """See `ItemIndex.over_keys`."""
        return _Part(self, keys_MW)


class _Part(ItemIndex):
    """Items of a table under other rows."""

    unrelated = 0.0

    def __init__(self, table: TableIndex, keys_MW: Keys) -> None:
        self._table, self._keys_MW = table, keys_MW

    @property
    def size(self) -> int:
        return len(self._keys_MW)

    @property
    def dim(self) -> int:
        return self._table.dim

    @property
    def nbytes(self) -> int:
        return self._keys_MW.nbytes

    def _top(self, queries_BD: FloatArray, k: int, eligible: int, open_N: Mask | None) -> tuple[FloatArray, RowArray]:
        places = np.arange(self.size) if open_N is None else np.flatnonzero(open_N)
        scores_BP = self._table.scores(queries_BD, self._keys_MW[places])
        found = [_first(scores_P, places, k) for scores_P in scores_BP]
        return np.stack([scores for scores, _ in found]), np.stack([rows for _, rows in found])

    def keys(self, rows_R: RowArray) -> Keys:
        return self._keys_MW[self._checked_rows(rows_R, "rows")]

    def scores(self, queries_BD: FloatArray, keys_RW: Keys) -> FloatArray:
        return self._table.scores(queries_BD, keys_RW)

    def cosines(self, keys_AW: Keys, keys_BW: Keys) -> FloatArray:
        return self._table.cosines(keys_AW, keys_BW)

    def query_of(self, keys_RW: Keys) -> FloatArray:
        return self._table.query_of(keys_RW)


def _first(scores_R: FloatArray, rows_R: RowArray, k: int) -> tuple[FloatArray, RowArray]:
    """The k best of some rows, sorted by (-score, row)."""
    order_K = np.lexsort((rows_R, -scores_R))[:k]
    return scores_R[order_K], rows_R[order_K]


def _joined(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0)


def _length(values: npt.NDArray[np.float32]) -> float:
    """Euclidean length; 1 of a row without entries."""
    return float(np.linalg.norm(values.astype(np.float64))) or 1.0
