"""Builds an index from its spec, and measures the recall that it states against exact search."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from index.approximate import overlaps
from index.base import (
    FloatArray,
    IndexSpec,
    RowArray,
    SearchError,
    StoredIndex,
    VectorIndex,
    checked_vectors,
)
from index.kinds import index_class
from index.kinds.flat import FlatIndex

TOP = 10
MOST_QUERIES = 1000
MOST_SAMPLED = 20_000  # vectors that queries are made of, where not all are read
NOISE = 0.5
"""Length of the noise on queries made from item vectors, as a share of the vectors' spread."""
LIST_SLACK = 0.1
"""Largest allowed difference of the recall of a single golden list below the stated mean."""


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


def queries_from(vectors_ND: FloatArray, most: int = MOST_QUERIES) -> FloatArray:
    """Queries like the item vectors: a seeded sample of them, with noise."""
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(vectors_ND))[:most]
    noise = rng.standard_normal((len(chosen), vectors_ND.shape[1])) * vectors_ND.std(axis=0) * NOISE
    found: FloatArray = (vectors_ND[chosen] + noise).astype(np.float32)
    return found


def sampled_queries(index: VectorIndex) -> FloatArray:
    """Queries like the item vectors of an index, made of a sample of them where they are many; see `queries_from`."""
    rows = np.random.default_rng(1).permutation(index.size)[:MOST_SAMPLED]
    return queries_from(index.vectors(np.sort(rows)))


def recall_of(index: VectorIndex, queries_QD: FloatArray, exact: VectorIndex) -> float:
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
