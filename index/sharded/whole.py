"""The index that asks shards and merges their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from index.base import Eligible, FloatArray, RowArray, SearchError, VectorIndex, in_order
from index.sharded.shard import ReadShard, SearchShard, ShardAnswer, ShardCall

Scatter = Callable[[Mapping[int, ShardCall]], Mapping[int, ShardAnswer]]
"""Asks each of the numbered shards its own question, and returns all answers by the same numbers."""


class ShardedIndex(VectorIndex):
    """An index that holds no vector itself. Exact, whatever kind of index the vectors come from.

    Args:
        size: N, rows of all shards together.
        dim: D.
        count: S, the number of shards, at most N.
        scatter: asks them.
    """

    def __init__(self, size: int, dim: int, count: int, scatter: Scatter) -> None:
        if not 1 <= count <= size:
            raise SearchError(f"{size} rows cannot be divided among {count} shards; each needs a row or more")
        self._size, self._dim, self._count, self._scatter = size, dim, count, scatter

    @property
    def size(self) -> int:
        """N, the number of item vectors."""
        return self._size

    @property
    def dim(self) -> int:
        """D, the width of a vector."""
        return self._dim

    @property
    def nbytes(self) -> int:
        """None of the vectors is here."""
        return 0

    def vectors(self, rows_R: RowArray | None = None) -> FloatArray:
        """A copy of the item vectors, float32 [N, D], or of those of some rows, [R, D]; asks the shards."""
        rows = np.arange(self.size) if rows_R is None else self._checked_rows(rows_R, "rows")
        found_RD = np.empty((len(rows), self.dim), np.float32)
        here = {number: np.flatnonzero(rows % self._count == number) for number in range(self._count)}
        calls: dict[int, ShardCall] = {
            number: ReadShard(rows[at] // self._count) for number, at in here.items() if len(at)
        }
        for number, vectors in self._scatter(calls).items():
            found_RD[here[number]] = vectors
        return found_RD

    def _search(self, queries_BD: FloatArray, k: int, among: Eligible) -> tuple[FloatArray, RowArray]:
        calls: dict[int, ShardCall] = {}
        for number in range(self._count):
            places = None if among.allowed is None else self._places(among.allowed, number)
            if places is None or len(places):
                lists = None if among.exclude is None else [self._places(rows, number) for rows in among.exclude]
                calls[number] = SearchShard(queries_BD, k, lists, places)
        # An empty column of every kind, so that few rows, or none, fill the answer too.
        scores = [np.full((len(queries_BD), k), -np.inf, np.float32)]
        rows = [np.full((len(queries_BD), k), -1, np.int64)]
        for number, answer in (self._scatter(calls) if calls and len(queries_BD) else {}).items():
            assert isinstance(answer, tuple)
            scores.append(answer[0])
            rows.append(np.where(answer[1] < 0, -1, answer[1] * self._count + number))
        return merged(scores, rows, k)

    def _places(self, rows: RowArray, number: int) -> RowArray:
        here: RowArray = rows[rows % self._count == number] // self._count
        return here


def merged(scores: Sequence[FloatArray], rows: Sequence[RowArray], k: int) -> tuple[FloatArray, RowArray]:
    """The k best of several answers [B, …] to the same queries, sorted by (-score, row); row -1 comes last."""
    return in_order(np.concatenate(scores, axis=1), np.concatenate(rows, axis=1), k)
