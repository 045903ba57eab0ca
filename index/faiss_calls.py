"""Common functions of the faiss indexes: row filters, threads, and reading a file of which nothing is trusted."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np

from index.base import Content, FloatArray, FolderEntry, IndexFolderError, Mask, RowArray

HEADER = struct.Struct("<4siqqq?i")  # kind, dim, size, two unused, trained, metric
COUNT = struct.Struct("<q")  # of the elements of an array that follows
FLAT_KINDS = (b"IxFI", b"IxF2", b"IxFl")


def selector(open_N: Mask) -> Any:
    """A filter of faiss that lets only the rows set in ``open_N`` through."""
    return faiss.IDSelectorBitmap(np.packbits(open_N, bitorder="little"))  # type: ignore[call-arg, arg-type]


def products(query_D: FloatArray, vectors: Any, rows_R: RowArray) -> FloatArray:
    """Inner products of a query with some rows of vectors that lie in one array of float32, read where they are.

    Args:
        query_D: the query.
        vectors: array of N times D numbers, contiguous.
        rows_R: rows, all from 0 to N - 1.

    Returns:
        Inner products [R], the same for a row whatever other rows are asked for.
    """
    found_R = np.empty(len(rows_R), np.float32)
    query_D, rows_R = np.ascontiguousarray(query_D), np.ascontiguousarray(rows_R, np.int64)
    pointers = map(faiss.swig_ptr, (found_R, query_D, vectors, rows_R))
    faiss.fvec_inner_products_by_idx(*pointers, len(query_D), 1, len(rows_R))  # type: ignore[attr-defined]
    return found_R


def write_array(file: BinaryIO, numbers: Any, length: int | None = None) -> None:
    """Write an array, or an iterator over its parts with ``length`` elements in all, as `Bytes.array` reads it."""
    parts = (numbers,) if length is None else numbers
    file.write(COUNT.pack(numbers.size if length is None else length))
    for part in parts:
        file.write(np.ascontiguousarray(part).data)


@contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Run the body on one OpenMP thread if ``wanted``; the setting is the calling thread's own."""
    before = faiss.omp_get_max_threads()
    if not wanted or before == 1:
        yield
        return
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


class Bytes:
    """A file of faiss walked through before faiss reads it, so that no number in it makes faiss allocate or read more
    than the file holds.
    """

    def __init__(self, content: Content, path: Path, entry: FolderEntry) -> None:
        """``path`` is where the content was read from, for messages."""
        self.content, self.path, self.entry, self.place = content, path, entry, 0

    def header(self, *kinds: bytes) -> None:
        """Pass over the header of an index of one of these kinds, of the entry's size and width."""
        kind, dim, size, *_ = self.unpack(HEADER)
        if kind not in kinds:
            raise IndexFolderError(f"{self.path} holds an index of kind {kind!r}; index.json says {self._kind}")
        for name, found, said in (("dim", dim, self.entry.dim), ("size", size, self.entry.size)):
            if found != said:
                raise IndexFolderError(f"{self.path} has {name} {found}; index.json says {said}")

    def array(self, dtype: str, length: int | None = None) -> Any:
        """Pass over an array, of a given length where that is known, and return it."""
        (count,) = self.unpack(COUNT)
        width = np.dtype(dtype).itemsize
        if (length is not None and count != length) or not 0 <= count <= (len(self.content) - self.place) // width:
            raise self.error(f"an array of {count} numbers")
        found = np.frombuffer(self.content, dtype, count, self.place)
        self.place += count * width
        return found

    def flat(self) -> None:
        """Pass over all item vectors, which are the rest of the file."""
        self.header(*FLAT_KINDS)
        self.array("<f4", self.entry.dim * self.entry.size)
        if self.place != len(self.content):
            raise self.error(f"{len(self.content) - self.place} bytes after its vectors")

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        """Pass over numbers and return them."""
        if len(self.content) - self.place < layout.size:
            raise self.error("too few bytes")
        found = layout.unpack_from(self.content, self.place)
        self.place += layout.size
        return found

    def error(self, what: str) -> IndexFolderError:
        """The error that the file is no index of its kind, because it holds ``what``."""
        return IndexFolderError(f"{self.path} is not a faiss index of kind {self._kind}: it holds {what}")

    def index(self, expected: type) -> Any:
        """The index of faiss in these bytes, of a class of faiss."""
        try:
            index = faiss.deserialize_index(np.frombuffer(self.content, np.uint8))
        except (RuntimeError, MemoryError) as error:
            raise IndexFolderError(f"{self.path} is not a faiss index: {str(error).splitlines()[0]}") from None
        if not isinstance(index, expected):
            raise IndexFolderError(f"{self.path} holds a {type(index).__name__}; index.json says {self._kind}")
        metrics = {faiss.METRIC_INNER_PRODUCT: "inner_product", faiss.METRIC_L2: "l2"}
        for name, held, said in (
            ("size", index.ntotal, self.entry.size),
            ("dim", index.d, self.entry.dim),
            ("metric", metrics.get(index.metric_type, "another"), self.entry.metric),
        ):
            if held != said:
                raise IndexFolderError(f"{self.path} has {name} {held}; index.json says {said}")
        return index

    @property
    def _kind(self) -> str:
        return self.entry.spec.kind
