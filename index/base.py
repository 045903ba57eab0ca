"""The contract of an index over items and the behaviour that all of them share.

An index scores every catalog row for a query and answers with rows, never with item ids: see `index.catalog`. Most hold
one vector per row (`VectorIndex`); a table of counts (`index.tables.table`) does not. Argument checks, allowed rows,
exclusion and the order of equal scores are here, once; a kind of index (`index/kinds`) adds how the best rows are
found.
"""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

FloatArray = npt.NDArray[np.float32]
RowArray = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Keys = npt.NDArray[Any]

UNFINISHED = ".building"
"""Folder inside an index folder that a build in parts keeps its work in."""

Content = bytes | mmap.mmap
"""The bytes of a file: read, or mapped read-only."""

FEW = 64  # excluded rows of a query up to which it shares a scan with others


class IndexFolderError(Exception):
    """An index folder is missing, damaged, or not what its index.json says; the message is one sentence."""


class SearchError(ValueError):
    """A search was asked for what it cannot answer: a NaN query, a wrong width, a row outside the index."""


class IndexSpec(BaseModel):
    """The kind of an index and its parameters, as in a recipe and in index.json; every kind has a class of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters alone."""
        return self.model_dump(exclude={"kind"})


@dataclass(frozen=True)
class FolderEntry:
    """The content of index.json: what the file of the index must be.

    Attributes:
        spec: kind and parameters.
        metric: ``inner_product``.
        size: N, the number of item vectors.
        dim: D, the width of a vector.
        recall_at_10: share of the exact 10 best items that a search finds, measured when the index was built.
        recall_queries: what it was measured with: ``users``, ``items``, or ``none`` for exact search.
        bytes: size of the file of the index.
        sha256: its hash.
    """

    spec: IndexSpec
    metric: str
    size: int
    dim: int
    recall_at_10: float
    recall_queries: str = "none"
    bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Eligible:
    """Rows that a search may answer with; the fields are checked arguments of `ItemIndex.search`."""

    exclude: Sequence[RowArray] | None = None
    allowed: RowArray | None = None
    wanted: Hashable | None = None


class ItemIndex(ABC):
    """Top-k over N items by the score that each has for a query of width D.

    An item is known to an index by its key, an array of width W: its vector, or whatever else the scores are computed
    from. A subclass implements `_top`, or `_search` where it rules rows out in its own way.

    Attributes:
        exact: whether the k best rows are always found.
        recall_at_10: the share of the exact 10 best items that is found, measured at build; 1 for exact search.
        takes_vectors: whether a key is a vector, so that whoever has one can add an item.
        unrelated: score of items that have nothing to do with an item that `similar` is asked for; they are left out.
    """

    exact: ClassVar[bool] = True
    recall_at_10: float = 1.0
    takes_vectors: ClassVar[bool] = False
    unrelated: float = -np.inf

    @property
    @abstractmethod
    def size(self) -> int:
        """N, the number of items."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """D, the width of a query."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of memory that the index takes, about."""

    @abstractmethod
    def keys(self, rows_R: RowArray) -> Keys:
        """Keys of some rows, [R, W]; raises `SearchError` for a row outside the index."""

    @abstractmethod
    def scores(self, queries_BD: FloatArray, keys_RW: Keys) -> FloatArray:
        """Scores [B, R] of items for queries, each computed by itself: it does not depend on the others."""

    @abstractmethod
    def cosines(self, keys_AW: Keys, keys_BW: Keys) -> FloatArray:
        """How alike items are, [A, B], from -1 to 1; 0 where nothing is known of one."""

    def alike_to(self, keys_RW: Keys) -> Callable[[int], FloatArray]:
        """Gives the cosines [R] of all these items with one of them, by its place."""
        return lambda place: self.cosines(keys_RW[place : place + 1], keys_RW)[0]

    @abstractmethod
    def query_of(self, keys_RW: Keys) -> FloatArray:
        """Queries [R, D] whose best items are those that are most similar to each of these."""

    def over_keys(self, keys_MW: Keys) -> ItemIndex:
        """An exact index over items with these keys, of which it takes queries as this one does."""
        raise NotImplementedError

    def similar(
        self, row: int, k: int, allowed: npt.NDArray[np.integer] | None = None, wanted: Hashable | None = None
    ) -> tuple[FloatArray, RowArray]:
        """Up to k items that are most similar to that of a row, and their scores; arguments and errors of `search`."""
        rows = np.array([row], np.int64)
        (scores_K,), (rows_K,) = self.search(self.query_of(self.keys(rows)), k, [rows], allowed, wanted)
        kept_K = scores_K > self.unrelated
        return scores_K[kept_K], rows_K[kept_K]

    def search(
        self,
        queries_BD: npt.NDArray[np.floating],
        k: int,
        exclude: Sequence[npt.NDArray[np.integer]] | None = None,
        allowed: npt.NDArray[np.integer] | None = None,
        wanted: Hashable | None = None,
    ) -> tuple[FloatArray, RowArray]:
        """The k best eligible rows of every query and their inner products, sorted by (-score, row).

        Args:
            queries_BD: finite query vectors.
            k: rows asked for, 1 or more.
            exclude: for every query, rows that it is never answered with; None: none.
            allowed: the only rows that any query may be answered with (a category filter); None: all.
            wanted: a filter (`index.filters.language`) that gave ``allowed``, for an index that lets an engine search.

        Returns:
            Scores float32 [B, k] and rows int64 [B, k]; row -1 with score -inf where fewer than k rows are eligible.

        Raises:
            SearchError: k below 1, queries of another width or not finite, a row outside the index, or an overflow.
            index.unavailable.SearchUnavailable: what answers searches elsewhere is away.
        """
        checked_BD = self._checked_queries(queries_BD, k)
        if exclude is not None and len(exclude) != len(checked_BD):
            raise SearchError(
                f"exclude holds {len(exclude)} lists for {len(checked_BD)} queries; give one list of rows per query"
            )
        lists = None if exclude is None else self._checked_lists(exclude)
        rows = None if allowed is None else self._checked_rows(allowed, "allowed")
        return self._search(checked_BD, k, Eligible(lists, rows, wanted))

    def trouble(self) -> str | None:
        """Why searches fail until something outside this process comes back; None while they do not."""
        return None

    # -- for subclasses ------------------------------------------------------------------------------------------

    def _top(self, queries_BD: FloatArray, k: int, eligible: int, open_N: Mask | None) -> tuple[FloatArray, RowArray]:
        """The k best of the ``eligible`` >= k rows that are set in ``open_N`` (None: all), sorted by (-score, row)."""
        raise NotImplementedError

    def _search(self, queries_BD: FloatArray, k: int, among: Eligible) -> tuple[FloatArray, RowArray]:
        """`search` with arguments that have been checked.

        A few excluded rows are dropped from a longer answer; many are left out of the search itself.
        """
        scores_BK = np.full((len(queries_BD), k), -np.inf, dtype=np.float32)
        rows_BK = np.full((len(queries_BD), k), -1, dtype=np.int64)
        for queries, open_N, excluded in self._groups(len(queries_BD), among.exclude, self._mask(among.allowed)):
            eligible = self.size if open_N is None else int(np.count_nonzero(open_N))
            if eligible == 0:
                continue
            wide = min(k + max(map(len, excluded), default=0), eligible)
            scores, rows = self._top(queries_BD[queries], wide, eligible, open_N)
            if any(map(len, excluded)):
                scores, rows = self._without(scores, rows, excluded, min(k, wide))
            scores_BK[queries, : min(k, wide)] = scores[:, :k]
            rows_BK[queries, : min(k, wide)] = rows[:, :k]
        return scores_BK, rows_BK

    def _mask(self, allowed: RowArray | None) -> Mask | None:
        if allowed is None:
            return None
        mask_N = np.zeros(self.size, dtype=bool)
        mask_N[allowed] = True
        return mask_N

    def _groups(
        self, batch: int, exclude: Sequence[RowArray] | None, allowed_N: Mask | None
    ) -> Iterator[tuple[list[int], Mask | None, list[RowArray]]]:
        """Queries that one call may answer, the rows open to them (None: all), and the rows to drop afterwards."""
        if exclude is None:
            yield list(range(batch)), allowed_N, []
            return
        together: dict[int, RowArray] = {}
        for query, excluded in enumerate(exclude):
            if excluded.size <= FEW:
                together[query] = excluded
                continue
            mask_N = np.ones(self.size, dtype=bool) if allowed_N is None else allowed_N.copy()
            mask_N[excluded] = False
            yield [query], mask_N, []
        if together:
            yield list(together), allowed_N, list(together.values())

    def _without(
        self, scores_BW: FloatArray, rows_BW: RowArray, excluded: Sequence[RowArray], k: int
    ) -> tuple[FloatArray, RowArray]:
        """The first k rows of every query that are not excluded, then row -1 with score -inf."""
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

    # -- checks --------------------------------------------------------------------------------------------------

    def _checked_queries(self, queries_BD: npt.NDArray[np.floating], k: int) -> FloatArray:
        if k < 1:
            raise SearchError(f"k is {k}; ask for 1 item or more")
        queries_BD = np.ascontiguousarray(queries_BD, dtype=np.float32)
        if queries_BD.ndim != 2 or queries_BD.shape[1] != self.dim:
            raise SearchError(f"queries have shape {queries_BD.shape}; this index takes [batch, {self.dim}]")
        finite_B = np.isfinite(queries_BD).all(axis=1)
        if not finite_B.all():
            query = int(np.flatnonzero(~finite_B)[0])
            raise SearchError(f"query {query} holds NaN or infinity; it cannot rank anything")
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


class VectorIndex(ItemIndex):
    """An index of one vector per item. A query is a vector too, and the score their inner product."""

    takes_vectors: ClassVar[bool] = True

    @abstractmethod
    def vectors(self, rows_R: RowArray | None = None) -> FloatArray:
        """A copy of the item vectors, float32 [N, D], or of those of some rows, [R, D]."""

    def keys(self, rows_R: RowArray) -> FloatArray:
        """See `ItemIndex.keys`: the vectors."""
        return self.vectors(rows_R) if len(rows_R) else np.empty((0, self.dim), np.float32)

    def scores(self, queries_BD: FloatArray, keys_RW: Keys) -> FloatArray:
        """See `ItemIndex.scores`: each inner product is summed separately."""
        return np.stack([np.einsum("rd,d->r", keys_RW, query_D, optimize=False) for query_D in queries_BD])

    def cosines(self, keys_AW: Keys, keys_BW: Keys) -> FloatArray:
        """See `ItemIndex.cosines`."""
        found: FloatArray = _unit(keys_AW) @ _unit(keys_BW).T
        return found

    def alike_to(self, keys_RW: Keys) -> Callable[[int], FloatArray]:
        """See `ItemIndex.alike_to`."""
        unit_RD = _unit(keys_RW)
        return lambda place: unit_RD @ unit_RD[place]

    def query_of(self, keys_RW: Keys) -> FloatArray:
        """See `ItemIndex.query_of`: the vectors themselves."""
        return keys_RW


class StoredIndex(VectorIndex):
    """An index that is built from a spec and kept in a folder: what a file of ``index/kinds`` defines as ``INDEX``.

    Attributes:
        Spec: class of the kind's spec.
        spec: kind and parameters of this index.
        recall_queries: what ``recall_at_10`` was measured with; see `FolderEntry`.
        maps: whether `parse` leaves the item vectors where they are in a file that is mapped.
    """

    maps: ClassVar[bool] = False
    Spec: ClassVar[type[IndexSpec]]
    spec: IndexSpec
    recall_queries: str = "none"

    @classmethod
    @abstractmethod
    def make(cls, spec: Any, vectors_ND: FloatArray) -> Self:
        """An index over finite vectors; the same vectors give the same index. Use `index.build_index`."""

    @classmethod
    @abstractmethod
    def parse(cls, content: Content, path: Path, entry: FolderEntry) -> Self:
        """The index in the bytes of its file, which come from ``path`` and may be hostile.

        Raises:
            IndexFolderError: they are not an index of this kind, or not what ``entry`` says.
        """

    @abstractmethod
    def write(self, path: Path) -> None:
        """Write the file that `parse` reads."""

    @property
    def effort(self) -> int:
        """Effort of a search, in the kind's own unit: more of it finds more and takes longer; 0 for exact kinds."""
        return 0

    def variants(self) -> Sequence[Self]:
        """The same index searched with other efforts, least first; none where there is nothing to choose."""
        return ()


def checked_vectors(vectors_ND: npt.NDArray[np.floating]) -> FloatArray:
    """Item vectors as float32 [N, D]; raises `SearchError` where there is none or one is not finite."""
    found = np.ascontiguousarray(vectors_ND, dtype=np.float32)
    if found.ndim != 2 or 0 in found.shape:
        raise SearchError(f"item vectors have shape {found.shape}; an index needs [items, width], both over 0")
    finite_N = np.isfinite(found).all(axis=1)
    if not finite_N.all():
        row = int(np.flatnonzero(~finite_N)[0])
        raise SearchError(f"the vector of item row {row} holds NaN or infinity; only finite values can be ranked")
    return found


def in_order(scores_BW: FloatArray, rows_BW: RowArray, k: int) -> tuple[FloatArray, RowArray]:
    """The first k of every row of an answer, sorted by (-score, row)."""
    if bool((scores_BW[:, 1:] < scores_BW[:, :-1]).all()):  # no ties, as nearly always: in order already
        return scores_BW[:, :k], rows_BW[:, :k]
    order = np.lexsort((rows_BW, -scores_BW), axis=1)[:, :k]
    return np.take_along_axis(scores_BW, order, axis=1), np.take_along_axis(rows_BW, order, axis=1)


def _unit(vectors_RD: FloatArray) -> FloatArray:
    """Vectors of length 1; a zero vector stays."""
    lengths_R1 = np.linalg.norm(vectors_RD, axis=1, keepdims=True)
    found: FloatArray = (vectors_RD / np.where(lengths_R1 > 0, lengths_R1, 1)).astype(np.float32, copy=False)
    return found
