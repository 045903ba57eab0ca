"""Item vectors in a safetensors file that are read in parts, as many rows at a time as a memory limit allows."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, Self

import faiss
import numpy as np

from index.base import FloatArray, IndexFolderError, Mask, RowArray, SearchError, VectorIndex, in_order
from index.faiss_calls import products

TYPES = {"F32": "<f4", "F16": "<f2"}
LONGEST_HEADER = 1 << 20


class ExactVectors(Protocol):
    """Methods of the item vectors behind an inverted file: in memory, or on disk."""

    @property
    def size(self) -> int:
        """N, the number of item vectors."""
        ...

    @property
    def dim(self) -> int:
        """D, the width of a vector."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of memory that they take."""
        ...

    def vectors(self, rows_R: RowArray | None = None) -> FloatArray:
        """A copy of all [N, D], or of those of some rows [R, D]."""
        ...

    def products(self, query_D: FloatArray, rows_R: RowArray) -> FloatArray:
        """Inner products of a query with the vectors of some rows [R], which must be there."""
        ...

    def _top(self, queries_BD: FloatArray, k: int, eligible: int, open_N: Mask | None) -> tuple[FloatArray, RowArray]:
        """As `VectorIndex._top`."""
        ...


class DiskVectors(VectorIndex):
    """Exact search over vectors on disk; the reference of an index that is built in parts."""

    def __init__(self, path: Path, rows_at_a_time: int) -> None:
        """Map the file, which holds one tensor [N, D]; raises `IndexFolderError`, one sentence."""
        self._array_ND, self._mapping = _mapped(path)
        self._rows = max(1, rows_at_a_time)

    @classmethod
    def over(cls, array_ND: Any, mapping: mmap.mmap, rows_at_a_time: int) -> Self:
        """The same over an array, finite or not, that ends a mapped file."""
        made = object.__new__(cls)
        made._array_ND, made._mapping, made._rows = array_ND, mapping, max(1, rows_at_a_time)
        return made

    @property
    def size(self) -> int:
        """N, the number of item vectors."""
        return int(self._array_ND.shape[0])

    @property
    def dim(self) -> int:
        """D, the width of a vector."""
        return int(self._array_ND.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that are in memory at a time."""
        return self._rows * self.dim * 4

    def vectors(self, rows_R: RowArray | None = None) -> FloatArray:
        """A copy of the item vectors, float32 [N, D], or of those of some rows, [R, D]."""
        found: FloatArray
        if rows_R is None:
            found = np.array(self._array_ND, np.float32)
        else:
            found = self._array_ND[rows_R].astype(np.float32, copy=False)  # copied by its rows
        return found

    def products(self, query_D: FloatArray, rows_R: RowArray) -> FloatArray:
        """Inner products of a query with the vectors of some rows [R], which must be there."""
        if self._array_ND.dtype == np.float32:
            return products(query_D, self._array_ND, rows_R)
        return products(query_D, self.vectors(rows_R), np.arange(len(rows_R)))

    def blocks(self) -> Iterator[tuple[int, FloatArray]]:
        """All vectors in order, with the row that a block begins at; raises `SearchError` where one is not finite."""
        for first in range(0, self.size, self._rows):
            block = np.array(self._array_ND[first : first + self._rows], np.float32)
            finite = np.isfinite(block).all(axis=1)
            if not finite.all():
                row = first + int(np.flatnonzero(~finite)[0])
                raise SearchError(f"the vector of item row {row} holds NaN or infinity; only finite values are ranked")
            self._release(first, len(block))
            yield first, block

    def _release(self, first: int, count: int) -> None:
        """Let go of the pages of rows that were copied, so that a pass over all does not fill the memory."""
        width = self._array_ND.itemsize * self.dim
        begin = len(self._mapping) - self._array_ND.nbytes + first * width
        start = begin - begin % mmap.PAGESIZE
        self._mapping.madvise(mmap.MADV_DONTNEED, start, begin + count * width - start)

    def _top(self, queries_BD: FloatArray, k: int, eligible: int, open_N: Mask | None) -> tuple[FloatArray, RowArray]:
        """The k best rows, block by block; of a filter only the rows that it lets through are read."""
        scores_BW = np.full((len(queries_BD), k), -np.inf, np.float32)
        rows_BW = np.full((len(queries_BD), k), -1, np.int64)
        for rows, part in self._parts(open_N):
            scores, places = _best(queries_BD, part, k)
            scores_BW = np.concatenate([scores_BW, scores], axis=1)
            rows_BW = np.concatenate([rows_BW, rows[places]], axis=1)
            order = np.lexsort((rows_BW, -scores_BW), axis=1)[:, :k]
            scores_BW = np.take_along_axis(scores_BW, order, axis=1)
            rows_BW = np.take_along_axis(rows_BW, order, axis=1)
        return in_order(scores_BW, rows_BW, k)

    def _parts(self, open_N: Mask | None) -> Iterator[tuple[RowArray, FloatArray]]:
        if open_N is None:
            for first, block in self.blocks():
                yield np.arange(first, first + len(block)), block
            return
        allowed = np.flatnonzero(open_N)
        for first in range(0, len(allowed), self._rows):
            rows = allowed[first : first + self._rows]
            yield rows, self.vectors(rows)


def _best(queries_BD: FloatArray, part_RD: FloatArray, k: int) -> tuple[FloatArray, RowArray]:
    """The k best of some vectors, and all that are as good as the last of them at the cut."""
    wide = min(k + 1, len(part_RD))
    while True:
        scores, places = faiss.knn(queries_BD, part_RD, wide, metric=faiss.METRIC_INNER_PRODUCT)
        if not np.isfinite(scores).all():
            raise SearchError("an inner product overflows float32; item vectors or queries are far too large")
        if wide == len(part_RD) or (scores[:, k - 1] > scores[:, wide - 1]).all():
            return scores, places
        wide = min(2 * wide, len(part_RD))


def _mapped(path: Path) -> tuple[Any, mmap.mmap]:
    """The one tensor of a safetensors file, mapped and not read, and the mapping, which it ends."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= LONGEST_HEADER:
                raise IndexFolderError(f"{path} is not a safetensors file: its header would have {length} bytes")
            header = json.loads(file.read(length))
        tensors = {name: each for name, each in header.items() if name != "__metadata__"}
        if len(tensors) != 1:
            raise IndexFolderError(f"{path} holds tensors {sorted(tensors)}; expected exactly one, the item vectors")
        (tensor,) = tensors.values()
        kind, shape, begin = TYPES.get(tensor["dtype"]), tuple(tensor["shape"]), tensor["data_offsets"][0]
        if kind is None or len(shape) != 2 or 0 in shape:
            raise IndexFolderError(
                f"{path} holds {tensor['dtype']} of shape {list(shape)}; expected F32 or F16 of shape [items, width]"
            )
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if tensor["data_offsets"][1] - begin != len(mapping) - 8 - length - begin:
            raise IndexFolderError(f"{path} has bytes after its tensor, or too few")
        return np.frombuffer(mapping, kind, offset=8 + length + begin).reshape(shape), mapping
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IndexFolderError(f"{path} cannot be read as safetensors: {error}") from None
