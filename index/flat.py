"""Exact search over all item vectors: `faiss.IndexFlatIP`. A few excluded rows are left out of what comes back, which
is asked for longer by as many; many are excluded inside the scan, through an `IDSelector`.

Three properties that faiss alone does not give and that callers rely on:

- Equal scores come in ascending row order, at the cut too. faiss keeps an arbitrary one of two equal items at
  position k, so the search is widened until the tie at the cut is complete (`_widen`).
- A NaN in a query is an error. faiss would answer it with an empty list.
- A single query runs on one OpenMP thread: on a busy machine several threads make it slower, not faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from index.base import FloatArray, RowArray, SearchError
from index.storage import FolderEntry, parse_index, read_index_file, write_index_folder

FACTORY = "Flat"
METRIC = "inner_product"
FEW = 64
"""Excluded rows of a query up to which it shares a scan with others."""


class FlatIndex:
    """Exact maximum inner product search (see `index.base.VectorIndex` for the contract of `search`)."""

    def __init__(self, faiss_index: Any) -> None:
        """Wrap a faiss flat inner product index; use `FlatIndex.build` or `index.open_index` instead."""
        self._index = faiss_index

    @classmethod
    def build(cls, vectors_ND: npt.NDArray[np.floating]) -> FlatIndex:
        """An index over the rows of `vectors_ND`; `SearchError` if it is empty or not finite."""
        vectors_ND = np.ascontiguousarray(vectors_ND, dtype=np.float32)
        if vectors_ND.ndim != 2 or 0 in vectors_ND.shape:
            raise SearchError(f"item vectors have shape {vectors_ND.shape}; an index needs [items, width], both over 0")
        if not np.isfinite(vectors_ND).all():
            row = int(np.flatnonzero(~np.isfinite(vectors_ND).all(axis=1))[0])
            raise SearchError(f"the vector of item row {row} holds NaN or infinity; only finite values can be ranked")
        faiss_index = faiss.IndexFlatIP(vectors_ND.shape[1])
        faiss_index.add(vectors_ND)
        return cls(faiss_index)

    @property
    def size(self) -> int:
        """N, the number of item vectors."""
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """D, the width of a vector."""
        return int(self._index.d)

    @property
    def vectors_ND(self) -> FloatArray:
        """A copy of the item vectors, float32 [N, D]."""
        vectors: FloatArray = self._index.reconstruct_n(0, self.size)
        return vectors

    def search(
        self,
        queries_BD: npt.NDArray[np.floating],
        k: int,
        exclude: Sequence[npt.NDArray[np.integer]] | None = None,
        allowed: npt.NDArray[np.integer] | None = None,
    ) -> tuple[FloatArray, RowArray]:
        """The k best eligible rows of every query and their inner products, sorted by (-score, row)."""
        queries_BD = self._checked_queries(queries_BD, k)
        batch = len(queries_BD)
        if exclude is not None and len(exclude) != batch:
            raise SearchError(
                f"exclude holds {len(exclude)} lists for {batch} queries; give one list of rows per query"
            )
        scores_BK = np.full((batch, k), -np.inf, dtype=np.float32)
        rows_BK = np.full((batch, k), -1, dtype=np.int64)
        eligible_N = self._eligible(allowed)
        for queries, mask, excluded in self._groups(batch, exclude, eligible_N):
            found = self.size if mask is None else int(np.count_nonzero(mask))
            if found == 0:
                continue
            wide = min(k + max(map(len, excluded), default=0), found)
            with _one_thread(len(queries) == 1):
                scores, rows = self._widen(queries_BD[queries], wide, found, mask)
            if any(map(len, excluded)):
                scores, rows = self._without(scores, rows, excluded, min(k, wide))
            scores_BK[queries, : min(k, wide)] = scores[:, :k]
            rows_BK[queries, : min(k, wide)] = rows[:, :k]
        return scores_BK, rows_BK

    def save(self, folder: Path) -> None:
        """Write `index.faiss` and `index.json` into `folder`; the same vectors give the same bytes."""
        entry = FolderEntry(factory=FACTORY, metric=METRIC, size=self.size, dim=self.dim, recall_at_10=1.0)
        write_index_folder(Path(folder), self._index, entry)

    @classmethod
    def open(cls, folder: Path, entry: FolderEntry) -> FlatIndex:
        """Read what `save` wrote; `index.open_index` is the usual way in. Raises `IndexFolderError`."""
        return cls(read_index_file(Path(folder), entry, faiss.IndexFlat))

    @classmethod
    def parse(cls, content: bytes, path: Path, entry: FolderEntry) -> FlatIndex:
        """The index in the bytes of `index.faiss`, which were read from `path`. Raises `IndexFolderError`."""
        return cls(parse_index(content, path, entry, faiss.IndexFlat))

    def _checked_queries(self, queries_BD: npt.NDArray[np.floating], k: int) -> FloatArray:
        if k < 1:
            raise SearchError(f"k is {k}; ask for 1 item or more")
        queries_BD = np.ascontiguousarray(queries_BD, dtype=np.float32)
        if queries_BD.ndim != 2 or queries_BD.shape[1] != self.dim:
            raise SearchError(f"queries have shape {queries_BD.shape}; this index takes [batch, {self.dim}]")
        finite_B = np.isfinite(queries_BD).all(axis=1)
        if not finite_B.all():
            raise SearchError(
                f"query {int(np.flatnonzero(~finite_B)[0])} holds NaN or infinity; it cannot rank anything"
            )
        return queries_BD

    def _checked_rows(self, rows: npt.NDArray[np.integer], name: str) -> RowArray:
        rows = np.asarray(rows)
        if rows.size and rows.dtype.kind not in "iu":
            raise SearchError(f"{name} holds {rows.dtype} values; rows are integers from 0 to {self.size - 1}")
        rows = rows.astype(np.int64, copy=False).ravel()
        if rows.size and (rows.min() < 0 or rows.max() >= self.size):
            odd = rows[(rows < 0) | (rows >= self.size)][0]
            raise SearchError(f"{name} holds row {odd}; rows of this index run from 0 to {self.size - 1}")
        return rows

    def _checked_lists(self, exclude: Sequence[npt.NDArray[np.integer]]) -> Sequence[RowArray]:
        """Every query's excluded rows. One check for all of them takes a fraction of the time; where it fails, the
        query at fault is looked for."""
        lists = [np.asarray(rows) for rows in exclude]
        if lists and all(rows.ndim == 1 and rows.dtype.kind in "iu" for rows in lists):  # together, a bool is a number
            with suppress(SearchError):
                checked = self._checked_rows(np.concatenate(lists), "exclude")
                return np.split(checked, np.cumsum([len(rows) for rows in lists])[:-1])
        return [self._checked_rows(rows, f"exclude[{query}]") for query, rows in enumerate(lists)]

    def _eligible(self, allowed: npt.NDArray[np.integer] | None) -> npt.NDArray[np.bool_] | None:
        if allowed is None:
            return None
        mask_N = np.zeros(self.size, dtype=bool)
        mask_N[self._checked_rows(allowed, "allowed")] = True
        return mask_N

    def _groups(
        self,
        batch: int,
        exclude: Sequence[npt.NDArray[np.integer]] | None,
        eligible_N: npt.NDArray[np.bool_] | None,
    ) -> Iterator[tuple[list[int], npt.NDArray[np.bool_] | None, list[RowArray]]]:
        """Queries that may be searched in one call, the rows open to them (None: all), and those to leave out then."""
        if exclude is None:
            yield list(range(batch)), eligible_N, []
            return
        together: dict[int, RowArray] = {}
        for query, excluded in enumerate(self._checked_lists(exclude)):
            if excluded.size <= FEW:
                together[query] = excluded
                continue
            mask_N = np.ones(self.size, dtype=bool) if eligible_N is None else eligible_N.copy()
            mask_N[excluded] = False
            yield [query], mask_N, []
        if together:
            yield list(together), eligible_N, list(together.values())

    def _without(
        self, scores_BW: FloatArray, rows_BW: RowArray, excluded: Sequence[RowArray], k: int
    ) -> tuple[FloatArray, RowArray]:
        """The first k rows of every query that are not excluded; what is missing is shown as what is not there."""
        open_N = np.ones(self.size, dtype=bool)
        open_BW = np.empty(rows_BW.shape, dtype=bool)
        for query, taken in enumerate(excluded):
            open_N[taken] = False
            np.take(open_N, rows_BW[query], out=open_BW[query])
            open_N[taken] = True
        first_BW = open_BW & (open_BW.cumsum(axis=1) <= k)
        if np.count_nonzero(first_BW) == len(rows_BW) * k:
            return scores_BW[first_BW].reshape(-1, k), rows_BW[first_BW].reshape(-1, k)
        order = np.argsort(~open_BW, axis=1, kind="stable")
        scores_BW, rows_BW = np.where(open_BW, scores_BW, -np.inf), np.where(open_BW, rows_BW, -1)
        return np.take_along_axis(scores_BW, order, axis=1), np.take_along_axis(rows_BW, order, axis=1)

    def _widen(
        self, queries_BD: FloatArray, k: int, found: int, mask_N: npt.NDArray[np.bool_] | None
    ) -> tuple[FloatArray, RowArray]:
        """The k best of `found` eligible rows: asks for more until no tie crosses the cut, then sorts."""
        parameters = None if mask_N is None else _selecting(mask_N)
        wide = min(k + 1, found)
        while True:
            scores, rows = self._index.search(queries_BD, wide, params=parameters)
            if (rows < 0).any() or not np.isfinite(scores).all():  # found >= wide, so a hole is a NaN score
                raise SearchError("an inner product overflows float32; item vectors or queries are far too large")
            if wide == found or (scores[:, k - 1] > scores[:, wide - 1]).all():
                break
            wide = min(2 * wide, found)
        if (scores[:, 1:] < scores[:, :-1]).all():
            return scores[:, :k], rows[:, :k]
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _selecting(mask_N: npt.NDArray[np.bool_]) -> Any:
    """Search parameters that let only the rows set in `mask_N` through."""
    selector = faiss.IDSelectorBitmap(np.packbits(mask_N, bitorder="little"))  # type: ignore[call-arg, arg-type]
    return faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]


@contextmanager
def _one_thread(wanted: bool) -> Iterator[None]:
    """Run the body on one OpenMP thread if `wanted`; the setting is the calling thread's own."""
    before = faiss.omp_get_max_threads()
    if not wanted or before == 1:
        yield
        return
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
