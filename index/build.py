"""Builds an index from its spec, and measures the recall that it states against exact search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from index.approximate import overlaps
from index.base import (
    FloatArray,
    FolderEntry,
    IndexSpec,
    RowArray,
    SearchError,
    StoredIndex,
    VectorIndex,
    checked_vectors,
)
from index.ivf.cells import IvfIndex, IvfSpec
from index.ivf.streamed import StreamedBuild
from index.kinds import index_class
from index.kinds.flat import FlatIndex
from index.storage import save_index

TOP = 10
MOST_QUERIES = 1000
MOST_SAMPLED = 20_000  # vectors on disk that queries are made of
NOISE = 0.5
"""Length of the noise on queries made from item vectors, as a share of the vectors' spread."""
LIST_SLACK = 0.1
"""How far the recall of a single golden list may lie below the stated mean."""


def build_index(
    spec: IndexSpec, vectors_ND: npt.NDArray[np.floating], users: Callable[[], FloatArray] | None = None
) -> StoredIndex:
    """The index of a spec over item vectors, its recall measured.

    Args:
        spec: kind and parameters.
        vectors_ND: the vector of every item; finite.
        users: gives user vectors to measure the recall of an approximate kind with; None: item vectors with noise.

    Raises:
        SearchError: no vectors, or one that is not finite.
    """
    vectors_ND = checked_vectors(vectors_ND)
    index = index_class(spec.kind).make(spec, vectors_ND)
    if not index.exact:
        queries_QD = queries_from(vectors_ND) if users is None else users()
        index.recall_at_10 = recall_of(index, queries_QD, FlatIndex.build(vectors_ND))
        index.recall_queries = "items" if users is None else "users"
    return index


def build_streamed(
    spec: IndexSpec,
    source: Path,
    folder: Path,
    memory_mib: int,
    queries_QD: FloatArray | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> FolderEntry:
    """Build an inverted file over the vectors of a safetensors file, in shards and within a memory limit, and write it.

    Args:
        spec: of a kind that is built in parts (``ivf-pq``, ``ivf-sq``).
        source: one tensor [N, D].
        folder: where it goes; a build that was killed there goes on.
        memory_mib: limit on training sample and shards; all codes come on top of it.
        queries_QD: user vectors to measure the recall with; None: item vectors with noise.
        say: is told of the progress.

    Raises:
        SearchError: another kind, a limit that is too low, or a vector that is not finite.
        IndexFolderError: the file cannot be read.
    """
    kind = index_class(spec.kind)
    if not issubclass(kind, IvfIndex) or not isinstance(spec, IvfSpec):
        raise SearchError(f"kind {spec.kind!r} is not built in parts; ivf-pq and ivf-sq are. Leave the limit out")
    build = StreamedBuild(kind, spec, source, folder, memory_mib)
    index = build.run(say)
    say("measuring recall")
    if queries_QD is None:
        sample = np.random.default_rng(1).permutation(index.size)[:MOST_SAMPLED]
        queries_QD = queries_from(build.vectors.vectors(np.sort(sample)))
        index.recall_queries = "items"
    else:
        index.recall_queries = "users"
    index.recall_at_10 = recall_of(index, queries_QD, build.vectors)
    entry = save_index(index, folder)
    build.finish()
    return entry


def queries_from(vectors_ND: FloatArray, most: int = MOST_QUERIES) -> FloatArray:
    """Queries like the item vectors: a seeded sample of them, with noise."""
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(vectors_ND))[:most]
    noise = rng.standard_normal((len(chosen), vectors_ND.shape[1])) * vectors_ND.std(axis=0) * NOISE
    found: FloatArray = (vectors_ND[chosen] + noise).astype(np.float32)
    return found


def recall_of(index: StoredIndex, queries_QD: FloatArray, exact: VectorIndex) -> float:
    """The mean share of the exact ten best rows that the index finds."""
    _, wanted = exact.search(queries_QD, TOP)
    _, found = index.search(queries_QD, TOP)
    return round(float(np.mean(overlaps(found, wanted))), 4)


def least_overlap(index_recall: float) -> float:
    """The share of a golden list that an index of this stated recall must find."""
    return index_recall - LIST_SLACK


def reaching(
    index: StoredIndex, queries_BD: FloatArray, exclude: Sequence[RowArray], tops: Sequence[RowArray]
) -> StoredIndex:
    """The index, or its least wide variant, that finds enough of every one of these exact lists.

    A variant keeps the recall that was stated: it finds more than that.

    Raises:
        SearchError: none does.
    """
    if index.exact or not tops:
        return index
    for candidate in (index, *(wider for wider in index.variants() if wider.effort > index.effort)):
        _, found = candidate.search(queries_BD, max(map(len, tops)), exclude)
        if min(overlaps(found, tops), default=1.0) >= least_overlap(index.recall_at_10):
            return candidate
    raise SearchError(
        f"an index of kind {index.spec.kind!r} with {index.spec.parameters} states recall {index.recall_at_10:g}, and "
        f"finds less than {least_overlap(index.recall_at_10):.2f} of a golden list; choose other parameters"
    )
