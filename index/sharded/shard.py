"""One shard of an index, and the questions that it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from index.base import FloatArray, RowArray, SearchError, VectorIndex
from index.kinds.flat import FlatIndex


@dataclass(frozen=True)
class SearchShard:
    """Find the k best places of a shard for every query [B, D], with excluded and allowed places as in
    `VectorIndex.search`."""

    queries_BD: FloatArray
    k: int
    exclude: Sequence[RowArray] | None = None
    allowed: RowArray | None = None


@dataclass(frozen=True)
class ReadShard:
    """Give the vectors of these places; None: of all."""

    places: RowArray | None = None


ShardCall = SearchShard | ReadShard
ShardAnswer = tuple[FloatArray, RowArray] | FloatArray
"""Scores [B, K] and places [B, K] of a search, or vectors."""


class IndexShard:
    """The rows of one shard, searched exactly.

    Args:
        vectors_ND: of the rows of this shard, in row order.
    """

    def __init__(self, vectors_ND: FloatArray) -> None:
        self._index = FlatIndex.build(vectors_ND)

    @classmethod
    def of(cls, index: VectorIndex, number: int, count: int) -> IndexShard:
        """Shard ``number`` of ``count`` of an index; raises `SearchError` where it would have no rows."""
        if not 0 <= number < count or count > index.size:
            raise SearchError(
                f"there is no shard {number} of {count} of an index of {index.size} rows: shards are numbered from 0, "
                "and each has a row or more"
            )
        return cls(index.vectors(np.arange(number, index.size, count)))

    def answer(self, call: ShardCall) -> ShardAnswer:
        """Answer one question; raises `SearchError`."""
        if isinstance(call, ReadShard):
            return self._index.vectors(call.places)
        return self._index.search(call.queries_BD, min(call.k, self._index.size), call.exclude, call.allowed)
