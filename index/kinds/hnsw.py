"""``hnsw``: approximate search along a graph of neighbours (Malkov and Yashunin 2018), `faiss.IndexHNSWFlat`.

Searches take about logarithmic time in the number of items, for 4 to 8 bytes a link beside the vectors. Distances are
inner products; with vectors of very different lengths the recall is lower, which is measured at build and stated.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
from pydantic import Field

from index.approximate import ApproximateIndex
from index.base import Content, Eligible, FloatArray, FolderEntry, IndexSpec, Mask, RowArray
from index.faiss_calls import Bytes, one_thread, selector
from index.kinds.flat import FlatIndex

EFFORTS = (16, 32, 64, 128, 256, 512, 1024)
MAGIC = b"IHNf"
NUMBERS = struct.Struct("<5i")  # entry point, highest level, efConstruction, efSearch, one unused


class HnswSpec(IndexSpec):
    """Approximate search along a graph.

    The graph is built on one thread, so that the same vectors give the same one: 0.4 to 5 ms an item.
    """

    kind: Literal["hnsw"] = "hnsw"
    links: int = Field(32, ge=2, le=256, description="neighbours of an item on a level; twice as many on the lowest")
    build_effort: int = Field(200, ge=8, le=4096, description="candidates looked at for an item's neighbours")
    effort: int = Field(128, ge=1, le=65536, description="candidates looked at by a search (efSearch)")


class HnswIndex(ApproximateIndex):
    """Approximate maximum inner product search along a graph; exact where a filter leaves little."""

    Spec = HnswSpec
    spec: HnswSpec

    def __init__(self, faiss_index: Any, spec: HnswSpec) -> None:
        """Wrap an index of faiss; use `index.build_index` or `index.open_index` instead."""
        self._index, self.spec = faiss_index, spec
        self._flat = FlatIndex(faiss.downcast_index(faiss_index.storage))

    @classmethod
    def make(cls, spec: HnswSpec, vectors_ND: FloatArray) -> HnswIndex:
        """The graph over finite vectors, the same for the same vectors."""
        faiss_index = faiss.IndexHNSWFlat(vectors_ND.shape[1], spec.links, faiss.METRIC_INNER_PRODUCT)
        faiss_index.hnsw.efConstruction = spec.build_effort
        with one_thread():
            faiss_index.add(vectors_ND)
        return cls(faiss_index, spec)

    @classmethod
    def parse(cls, content: Content, path: Path, entry: FolderEntry) -> HnswIndex:
        """The index in the bytes of its file; raises `IndexFolderError`."""
        file = Bytes(content, path, entry)
        _check_graph(file)
        assert isinstance(entry.spec, HnswSpec)
        return cls(file.index(faiss.IndexHNSWFlat), entry.spec)

    def write(self, path: Path) -> None:
        """Write the file of the index."""
        faiss.write_index(self._index, str(path))

    @property
    def size(self) -> int:
        """N, the number of item vectors."""
        return self._flat.size

    @property
    def dim(self) -> int:
        """D, the width of a vector."""
        return self._flat.dim

    @property
    def nbytes(self) -> int:
        """Bytes of vectors and links."""
        graph = self._index.hnsw
        links = 4 * graph.neighbors.size() + 8 * graph.offsets.size() + 4 * graph.levels.size()
        return self._flat.nbytes + int(links)

    @property
    def effort(self) -> int:
        """Candidates that a search looks at."""
        return self.spec.effort

    def variants(self) -> Sequence[HnswIndex]:
        """The same graph searched with other efforts, least first; its own is among them."""
        found = []
        for effort in sorted({*EFFORTS, self.effort}):
            variant = HnswIndex(self._index, self.spec.model_copy(update={"effort": effort}))
            variant.recall_at_10, variant.recall_queries = self.recall_at_10, self.recall_queries
            found.append(variant)
        return found

    def vectors(self, rows_R: RowArray | None = None) -> FloatArray:
        """A copy of the item vectors, float32 [N, D], or of those of some rows, [R, D]."""
        return self._flat.vectors(rows_R)

    def _search(self, queries_BD: FloatArray, k: int, among: Eligible) -> tuple[FloatArray, RowArray]:
        if among.allowed is not None and self._narrow(k, len(among.allowed)):
            return self._flat._search(queries_BD, k, among)
        return super()._search(queries_BD, k, among)

    def _candidates(self, queries_BD: FloatArray, k: int, open_N: Mask | None) -> tuple[FloatArray, RowArray]:
        given = {"efSearch": self.effort} | ({} if open_N is None else {"sel": selector(open_N)})
        parameters = faiss.SearchParametersHNSW(**given)  # type: ignore[attr-defined]
        with one_thread(len(queries_BD) == 1):
            found: tuple[FloatArray, RowArray] = self._index.search(
                queries_BD, max(k, min(self.effort, self.size)), params=parameters
            )
        return found

    def _exact(self, queries_BD: FloatArray, k: int, eligible: int, open_N: Mask | None) -> tuple[FloatArray, RowArray]:
        return self._flat._top(queries_BD, k, eligible, open_N)


def _check_graph(file: Bytes) -> None:
    """Walk through the graph: a search follows its numbers without looking whether they stay inside.

    Raises:
        IndexFolderError: an array has another length than it must, or a number points outside.
    """
    size = file.entry.size
    file.header(MAGIC)
    file.array("<f8")
    ends_L = file.array("<i4")  # of an item's links, level by level
    levels_N = file.array("<i4", size)
    offsets_N1 = file.array("<i8", size + 1)
    links = file.array("<i4")
    entry_point, highest, *_ = file.unpack(NUMBERS)
    if not (len(ends_L) > 1 and ends_L[0] == 0 and (np.diff(ends_L) > 0).all()):
        raise file.error("levels without links")
    if not ((levels_N >= 1) & (levels_N < len(ends_L))).all() or highest != levels_N.max() - 1:
        raise file.error("an item on a level that is not there")
    if offsets_N1[0] != 0 or not np.array_equal(np.diff(offsets_N1), ends_L[levels_N]) or offsets_N1[-1] != len(links):
        raise file.error("links of an item that lie elsewhere")
    if not ((links >= -1) & (links < size)).all() or not 0 <= entry_point < size:
        raise file.error("a link to an item that is not there")
    if levels_N[entry_point] != highest + 1:
        raise file.error("an entry point below the highest level")
    _check_levels(file, ends_L, levels_N, offsets_N1, links)
    file.flat()


def _check_levels(file: Bytes, ends_L: Any, levels_N: Any, offsets_N1: Any, links: Any) -> None:
    """A link on a level leads to an item of that level, which has links there to follow."""
    for level in range(1, int(levels_N.max())):
        items = np.flatnonzero(levels_N > level)
        places = offsets_N1[items, None] + np.arange(ends_L[level], ends_L[level + 1])
        there = links[places]
        if (levels_N[there[there >= 0]] <= level).any():
            raise file.error("a link to an item that is not on its level")


INDEX = HnswIndex
