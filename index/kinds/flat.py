"""``flat``: exact search over all item vectors, `faiss.IndexFlatIP`; no parameters.

Two properties that faiss alone does not give and that callers rely on: equal scores come in ascending row order, at
the cut too (faiss keeps an arbitrary one of two equal items at position k, so the search is widened until the tie is
complete), and a single query runs on one OpenMP thread (on a busy machine several threads make it slower).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
import numpy.typing as npt

from index.base import (
    Content,
    Eligible,
    FloatArray,
    FolderEntry,
    IndexSpec,
    Mask,
    RowArray,
    SearchError,
    StoredIndex,
    checked_vectors,
    in_order,
)
from index.faiss_calls import Bytes, one_thread, products, selector

GATHERED_SHARE, GATHERED_SHARE_OF_MANY, MANY = 0.02, 0.5, 8
"""Share of the rows up to which those that a filter allows are copied out and searched alone, for one query and for
MANY. Beyond it, passing over the others costs less than the copy, which many queries share. Measured at 12,000 and
1,000,000 vectors of 128 numbers."""


class FlatSpec(IndexSpec):
    """Exact search."""

    kind: Literal["flat"] = "flat"


class FlatIndex(StoredIndex):
    """Exact maximum inner product search (see `index.base.VectorIndex` for the contract of `search`)."""

    Spec = FlatSpec
    spec = FlatSpec()

    def __init__(self, faiss_index: Any) -> None:
        """Wrap a flat inner product index of faiss; use `FlatIndex.build` or `index.open_index` instead."""
        self._index = faiss_index

    @classmethod
    def build(cls, vectors_ND: npt.NDArray[np.floating]) -> FlatIndex:
        """An index over the rows of ``vectors_ND``; `SearchError` if it is empty or not finite."""
        return cls.make(cls.spec, checked_vectors(vectors_ND))

    @classmethod
    def make(cls, spec: FlatSpec, vectors_ND: FloatArray) -> FlatIndex:
        """An index over finite vectors."""
        faiss_index = faiss.IndexFlatIP(vectors_ND.shape[1])
        faiss_index.add(vectors_ND)
        return cls(faiss_index)

    @classmethod
    def parse(cls, content: Content, path: Path, entry: FolderEntry) -> FlatIndex:
        """The index in the bytes of its file; raises `IndexFolderError`."""
        file = Bytes(content, path, entry)
        file.flat()
        return cls(file.index(faiss.IndexFlat))

    def write(self, path: Path) -> None:
        """Write the file of the index; the same vectors give the same bytes."""
        faiss.write_index(self._index, str(path))

    @property
    def size(self) -> int:
        """N, the number of item vectors."""
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """D, the width of a vector."""
        return int(self._index.d)

    @property
    def nbytes(self) -> int:
        """Bytes of all vectors."""
        return self.size * self.dim * np.dtype(np.float32).itemsize

    def vectors(self, rows_R: RowArray | None = None) -> FloatArray:
        """A copy of the item vectors, float32 [N, D], or of those of some rows, [R, D]."""
        found: FloatArray
        if rows_R is None:
            found = self._index.reconstruct_n(0, self.size)
        else:
            found = self._index.reconstruct_batch(self._checked_rows(rows_R, "rows"))
        return found

    def products(self, query_D: FloatArray, rows_R: RowArray) -> FloatArray:
        """Inner products of a query with the vectors of some rows [R], which must be there."""
        return products(query_D, faiss.rev_swig_ptr(self._index.get_xb(), self.size * self.dim), rows_R)

    def _search(self, queries_BD: FloatArray, k: int, among: Eligible) -> tuple[FloatArray, RowArray]:
        share = GATHERED_SHARE if len(queries_BD) < MANY else GATHERED_SHARE_OF_MANY
        allowed = among.allowed
        if allowed is None or not 0 < len(allowed) <= share * self.size:
            return super()._search(queries_BD, k, among)
        rows = allowed if (np.diff(allowed) > 0).all() else np.unique(allowed)
        part = FlatIndex.make(self.spec, self.vectors(rows))
        lists = None if among.exclude is None else [_places(rows, each) for each in among.exclude]
        scores, places = super(FlatIndex, part)._search(queries_BD, k, Eligible(lists))
        return scores, np.where(places < 0, -1, rows[places])

    def _top(self, queries_BD: FloatArray, k: int, eligible: int, open_N: Mask | None) -> tuple[FloatArray, RowArray]:
        """The k best eligible rows: asks for more until no tie crosses the cut, then sorts."""
        parameters = None if open_N is None else faiss.SearchParameters(sel=selector(open_N))  # type: ignore[call-arg]
        wide = min(k + 1, eligible)
        with one_thread(len(queries_BD) == 1):
            while True:
                scores, rows = self._index.search(queries_BD, wide, params=parameters)
                if (rows < 0).any() or not np.isfinite(scores).all():  # eligible >= wide: a hole is a NaN score
                    raise SearchError("an inner product overflows float32; item vectors or queries are far too large")
                if wide == eligible or (scores[:, k - 1] > scores[:, wide - 1]).all():
                    break
                wide = min(2 * wide, eligible)
        return in_order(scores, rows, k)


def _places(rows: RowArray, wanted: RowArray) -> RowArray:
    """Places in ascending rows of those of ``wanted`` that are among them."""
    found: RowArray = np.minimum(np.searchsorted(rows, wanted), len(rows) - 1)
    here: RowArray = found[rows[found] == wanted]
    return here


INDEX = FlatIndex
