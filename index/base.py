"""The contract between whatever ranks items and whatever finds them: one protocol and its two errors.

An index holds one vector per catalog row and answers with rows, never with item ids: see `index.catalog`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
RowArray = npt.NDArray[np.int64]


class IndexFolderError(Exception):
    """An index folder is missing, damaged, or not what its index.json says; the message is one sentence."""


class SearchError(ValueError):
    """A search was asked for what it cannot answer: a NaN query, a wrong width, a row outside the index."""


@runtime_checkable
class VectorIndex(Protocol):
    """Top-k by inner product over N item vectors of width D.

    `search(queries_BD, k, exclude, allowed)` returns `(scores_BK float32, rows_BK int64)`, each answer
    sorted by (-score, row). `exclude[b]` holds rows never returned for query b; `allowed` holds the only
    rows that may be returned to anyone (a category filter; None allows all). Where fewer than k rows are
    eligible the answer is filled with row -1 and score -inf. Raises `SearchError`.
    """

    @property
    def size(self) -> int:
        """N, the number of item vectors."""
        ...

    @property
    def dim(self) -> int:
        """D, the width of a vector."""
        ...

    def search(
        self,
        queries_BD: npt.NDArray[np.floating],
        k: int,
        exclude: Sequence[npt.NDArray[np.integer]] | None = None,
        allowed: npt.NDArray[np.integer] | None = None,
    ) -> tuple[FloatArray, RowArray]:
        """The k best eligible rows of every query, and their inner products."""
        ...
