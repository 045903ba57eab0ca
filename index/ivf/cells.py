"""Common part of the kinds ``ivf-pq``, ``ivf-sq`` and ``ivf-fastscan``: cells, codes, the exact second look.

Cells are those of k-means by Euclidean distance. An item lies in the cell whose centre is nearest, and its code holds
the difference. A search reads the cells whose centres have the largest inner products with the query, and the best of
what it finds there get their true inner products from the stored vectors.
"""

from __future__ import annotations

import math
import mmap
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import faiss
import numpy as np
from pydantic import Field

from index.approximate import ApproximateIndex
from index.base import (
    Content,
    FloatArray,
    FolderEntry,
    IndexFolderError,
    IndexSpec,
    Mask,
    RowArray,
    SearchError,
)
from index.faiss_calls import one_thread, selector
from index.ivf.file import Arrays, Trained, write_file
from index.ivf.on_disk import DiskVectors, ExactVectors

SAMPLES_A_CELL = 64
"""Training vectors for each cell; faiss takes no more of them either way."""
LEAST_A_CELL = 16  # items of a cell on average, at least
LEAST_TRAINING = 256  # vectors that codes are trained on; fewer are repeated
ITERATIONS = 10
BLOCK = 65_536  # rows that are encoded or written at a time
MAPPED_BLOCK = 32 << 20  # bytes of vectors on disk that an exact search reads at a time


class IvfSpec(IndexSpec):
    """Parameters of all inverted files."""

    cells_factor: ClassVar[int] = 4  # times sqrt(N), the usual number (faiss, guidelines to choose an index)

    cells: int = Field(0, ge=0, le=1 << 20, description="cells; 0: 4 √N, with 16 items or more in one on average")
    effort: int = Field(16, ge=1, le=1 << 20, description="cells that a search reads (nprobe)")
    rerank: int = Field(10, ge=1, le=1000, description="items scored exactly for every item asked for")

    def cells_for(self, size: int) -> int:
        """The number of cells of an index over so many items."""
        wanted = self.cells or round(self.cells_factor * math.sqrt(size))
        most = size if self.cells else size // LEAST_A_CELL
        return max(1, min(wanted, most))


class IvfIndex(ApproximateIndex):
    """Search in cells of codes with exact scores; exact where a filter leaves little."""

    maps = True
    MAGIC: ClassVar[bytes]
    Exact: ClassVar[Any]
    """Class of the index over the stored vectors in memory."""
    spec: IvfSpec

    def __init__(self, coded: Any, centres_CD: FloatArray, exact: ExactVectors, spec: IvfSpec) -> None:
        """Wrap an inverted file of faiss and the vectors it was made of; use `index.build_index` instead."""
        self._coded, self._centres_CD, self._vectors, self.spec = coded, centres_CD, exact, spec

    # -- what a kind defines -------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def empty(cls, spec: Any, quantizer: Any, size: int) -> Any:
        """An inverted file of faiss without codes, not trained, for so many items."""

    @classmethod
    @abstractmethod
    def train_codes(cls, coded: Any, residuals_SD: FloatArray) -> None:
        """Train the codes on differences from cells' centres."""

    @classmethod
    @abstractmethod
    def storage(cls, coded: Any) -> tuple[Any, int]:
        """The vector of faiss that holds the tables of the codes, and its length after training."""

    @classmethod
    def searched(cls, coded: Any) -> Any:
        """What is searched, made of an inverted file of faiss that holds all codes."""
        return coded

    @classmethod
    def lists(cls, coded: Any) -> Any:
        """The lists of faiss with rows and codes, of what is searched."""
        return coded.invlists

    # -- building ------------------------------------------------------------------------------------------------

    @classmethod
    def make(cls, spec: Any, vectors_ND: FloatArray) -> Self:
        """The index over finite vectors, the same for the same vectors."""
        with one_thread():
            size = len(vectors_ND)
            centres_CD, coded, _ = cls.trained(spec, vectors_ND[training_rows(spec, size)], size)
            for first in range(0, size, BLOCK):
                block = vectors_ND[first : first + BLOCK]
                cls.add(coded, *cls.encoded(coded, centres_CD, block), first)
        return cls(cls.searched(coded), centres_CD, cls.Exact.make(cls.Exact.Spec(), vectors_ND), spec)

    @classmethod
    def trained(cls, spec: Any, sample_SD: FloatArray, size: int) -> tuple[FloatArray, Any, FloatArray]:
        """Centres of cells, an inverted file without codes and its tables, from a sample of the vectors.

        Args:
            spec: kind and parameters.
            sample_SD: vectors, at least as many as cells.
            size: N, the items that the index is for.
        """
        dim, cells = sample_SD.shape[1], spec.cells_for(size)
        kmeans = faiss.Kmeans(dim, cells, niter=ITERATIONS, seed=0, min_points_per_centroid=1)
        kmeans.train(sample_SD)
        centres_CD: FloatArray = np.ascontiguousarray(kmeans.centroids, np.float32)
        coded = cls._around(spec, centres_CD, size)
        many_SD = np.resize(sample_SD, (max(len(sample_SD), LEAST_TRAINING), dim))
        cls.train_codes(coded, np.ascontiguousarray(many_SD - centres_CD[nearest(centres_CD, many_SD)]))
        tables = cls.tables(coded)
        coded.is_trained = True
        return centres_CD, coded, tables

    @classmethod
    def restored(cls, spec: Any, centres_CD: FloatArray, tables: FloatArray, size: int) -> Any | None:
        """An inverted file without codes from what was trained; None where the tables do not fit."""
        coded = cls._around(spec, centres_CD, size)
        if not cls.set_tables(coded, tables):
            return None
        coded.is_trained = True
        return coded

    @classmethod
    def _around(cls, spec: Any, centres_CD: FloatArray, size: int) -> Any:
        quantizer = faiss.IndexFlatIP(centres_CD.shape[1])
        quantizer.add(centres_CD)
        return cls.empty(spec, quantizer, size)  # faiss's wrapper keeps the quantizer alive

    @classmethod
    def encoded(cls, coded: Any, centres_CD: FloatArray, vectors_ND: FloatArray) -> tuple[RowArray, Any]:
        """The cell of every vector [N] and its code, uint8 [N, bytes]."""
        vectors_ND = np.ascontiguousarray(vectors_ND, np.float32)
        cells_N = nearest(centres_CD, vectors_ND)
        codes_NB = np.empty((len(vectors_ND), coded.code_size), np.uint8)
        coded.encode_vectors(
            len(vectors_ND), faiss.swig_ptr(vectors_ND), faiss.swig_ptr(cells_N), faiss.swig_ptr(codes_NB)
        )
        return cells_N, codes_NB

    @classmethod
    def add(cls, coded: Any, cells_N: RowArray, codes_NB: Any, first: int) -> None:
        """Put codes into their cells; their rows count from ``first``."""
        order = np.argsort(cells_N, kind="stable")
        cells, starts = np.unique(cells_N[order], return_index=True)
        for cell, rows in zip(cells.tolist(), np.split(order, starts[1:]), strict=True):
            ids, codes = np.ascontiguousarray(rows + first), np.ascontiguousarray(codes_NB[rows])
            coded.invlists.add_entries(cell, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(codes))
        coded.ntotal += len(cells_N)

    # -- the file ------------------------------------------------------------------------------------------------

    def write(self, path: Path) -> None:
        """Write the file of the index; vectors are written in blocks."""
        cells_N, codes_NB = self._contents()
        trained = Trained(self.MAGIC, self._centres_CD, self.tables(self._coded))
        write_file(path, trained, self.size, codes_NB.shape[1], [cells_N], [codes_NB], self._blocks())

    @classmethod
    def tables(cls, coded: Any) -> FloatArray:
        """The tables of trained codes, flat."""
        found: FloatArray = np.asarray(faiss.vector_to_array(cls.storage(coded)[0]), np.float32)
        return found

    @classmethod
    def set_tables(cls, coded: Any, tables: FloatArray) -> bool:
        """Set the tables of codes; False if their number does not fit this index."""
        vector, length = cls.storage(coded)
        if len(tables) != length:
            return False
        faiss.copy_array_to_vector(tables, vector)
        return True

    def _contents(self) -> tuple[Any, Any]:
        """The cell of every row, int32 [N], and its code [N, bytes]."""
        lists = self.lists(self._coded)
        cells_N = np.empty(self.size, np.int32)
        codes_NB = np.empty((self.size, self._coded.code_size), np.uint8)
        for cell in range(lists.nlist):
            count = lists.list_size(cell)
            if count:
                rows = faiss.rev_swig_ptr(lists.get_ids(cell), count)
                codes = faiss.rev_swig_ptr(lists.get_codes(cell), count * codes_NB.shape[1])
                cells_N[rows] = cell
                codes_NB[rows] = codes.reshape(count, -1)
        return cells_N, codes_NB

    def _blocks(self) -> Iterator[FloatArray]:
        for first in range(0, self.size, BLOCK):
            yield self._vectors.vectors(np.arange(first, min(first + BLOCK, self.size)))

    @classmethod
    def parse(cls, content: Content, path: Path, entry: FolderEntry) -> Self:
        """The index in the bytes of its file; raises `IndexFolderError`."""
        spec = entry.spec
        assert isinstance(spec, IvfSpec)
        stored = Arrays(content, path, entry, cls.MAGIC, spec.cells_for(entry.size))
        try:
            coded = cls.restored(spec, stored.centres_CD, stored.tables, entry.size)
        except SearchError as error:
            raise IndexFolderError(f"{path}: {error}") from None
        if coded is None:
            raise stored.file.error(f"tables of {len(stored.tables)} numbers")
        codes_NB, vectors_ND = stored.rest(coded.code_size)
        cls.add(coded, stored.cells_N, codes_NB, 0)
        exact: ExactVectors
        if isinstance(content, mmap.mmap):
            exact = DiskVectors.over(vectors_ND, content, MAPPED_BLOCK // (4 * entry.dim))
        else:
            exact = cls.Exact.make(cls.Exact.Spec(), np.ascontiguousarray(vectors_ND))
        return cls(cls.searched(coded), stored.centres_CD, exact, spec)

    # -- searching -----------------------------------------------------------------------------------------------

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
        """Bytes of vectors, codes, their rows and the centres."""
        return self._vectors.nbytes + self.size * (int(self._coded.code_size) + 8) + self._centres_CD.nbytes

    @property
    def effort(self) -> int:
        """Cells that a search reads."""
        return min(self.spec.effort, len(self._centres_CD))

    def variants(self) -> Sequence[Self]:
        """The same index searched in more or fewer cells, fewest first; its own number is among them."""
        count = len(self._centres_CD)
        efforts = {min(1 << power, count) for power in range(count.bit_length() + 1)} | {self.effort}
        found = []
        for effort in sorted(efforts):
            spec = self.spec if effort == self.effort else self.spec.model_copy(update={"effort": effort})
            variant = type(self)(self._coded, self._centres_CD, self._vectors, spec)
            variant.recall_at_10, variant.recall_queries = self.recall_at_10, self.recall_queries
            found.append(variant)
        return found

    def vectors(self, rows_R: RowArray | None = None) -> FloatArray:
        """A copy of the item vectors, float32 [N, D], or of those of some rows, [R, D]."""
        return self._vectors.vectors(rows_R)

    def _candidates(self, queries_BD: FloatArray, k: int, open_N: Mask | None) -> tuple[FloatArray, RowArray]:
        given: dict[str, Any] = {"nprobe": self.effort} | ({} if open_N is None else {"sel": selector(open_N)})
        parameters = faiss.SearchParametersIVF(**given)
        wide = min(max(k, k * self.spec.rerank), self.size)
        with one_thread(len(queries_BD) == 1):
            _, rows_BW = self._coded.search(queries_BD, wide, params=parameters)
        return self._best(queries_BD, rows_BW, k)

    def _best(self, queries_BD: FloatArray, rows_BW: RowArray, k: int) -> tuple[FloatArray, RowArray]:
        """The true inner products of found rows (-1: none), and of every query the k best or all that tie with them."""
        found = [
            self._best_of(query_D, rows_W[rows_W >= 0], k) for query_D, rows_W in zip(queries_BD, rows_BW, strict=True)
        ]
        width = max(k, *(len(rows) for _, rows in found))
        scores_BM = np.full((len(found), width), -np.inf, np.float32)
        rows_BM = np.full((len(found), width), -1, np.int64)
        for query, (scores, rows) in enumerate(found):
            scores_BM[query, : len(rows)], rows_BM[query, : len(rows)] = scores, rows
        return scores_BM, rows_BM

    def _best_of(self, query_D: FloatArray, rows_R: RowArray, k: int) -> tuple[FloatArray, RowArray]:
        scores_R = self._vectors.products(query_D, rows_R)
        if len(rows_R) <= k:
            return scores_R, rows_R
        least = np.partition(scores_R, len(rows_R) - k)[len(rows_R) - k]
        kept = np.flatnonzero(~(scores_R < least))  # NaN is kept, and refused later
        return scores_R[kept], rows_R[kept]

    def _exact(self, queries_BD: FloatArray, k: int, eligible: int, open_N: Mask | None) -> tuple[FloatArray, RowArray]:
        return self._vectors._top(queries_BD, k, eligible, open_N)


def nearest(centres_CD: FloatArray, vectors_ND: FloatArray) -> RowArray:
    """The centre nearest to every vector, by Euclidean distance [N]."""
    flat = faiss.IndexFlatL2(centres_CD.shape[1])
    flat.add(centres_CD)
    found: RowArray = np.ascontiguousarray(flat.search(np.ascontiguousarray(vectors_ND), 1)[1][:, 0])
    return found


def training_rows(spec: IvfSpec, size: int, most: int | None = None) -> RowArray:
    """The rows of the sample that an index over so many items is trained on, ascending, at most ``most``; the same for
    the same numbers."""
    wanted = max(SAMPLES_A_CELL * spec.cells_for(size), LEAST_TRAINING)
    if most is not None:
        wanted = min(wanted, most)
    if size <= wanted:
        return np.arange(size)
    found: RowArray = np.sort(np.random.default_rng(0).choice(size, wanted, replace=False))
    return found
