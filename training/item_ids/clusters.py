"""A tree of items that are chosen together: recursive spectral clustering of their co-occurrence graph.

Items are as near as the number of users who chose both. The leading eigenvectors of the normalised adjacency
``D^-1/2 A D^-1/2`` are cut into groups by a pivoted QR factorisation, which has no start to be lucky with (Damle,
Minden and Ying 2019), and groups that are too big are cut again (Hua et al. 2023, "collaborative indexing").

Shape legend: U users, N items, M items of a group, K clusters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import qr, svd
from scipy.sparse import csr_array
from scipy.sparse.linalg import LinearOperator, eigsh

Rows = NDArray[np.int64]
Doubles = NDArray[np.float64]

DENSE = 200
"""Groups up to this size are decomposed whole, which is exact and as fast."""


@dataclass(frozen=True)
class Leaf:
    """Items [M] that were not divided any more, and the way to them from the root."""

    path: tuple[int, ...]
    rows_M: Rows


def cluster_tree(chosen_UN: csr_array, *, clusters: int, leaf: int, levels: int, seed: int = 0) -> list[Leaf]:
    """The leaves of the tree: every item is in one of them, and a group of more than ``leaf`` items is divided.

    Args:
        chosen_UN: 1 where a user chose an item.
        clusters: K, parts that a group is divided into.
        leaf: most items of a leaf, as far as ``levels`` allows and the graph can be divided at all.
        levels: longest way to a leaf.
        seed: of the start of the eigensolver.
    """
    waiting: list[Leaf] = [Leaf((), np.arange(chosen_UN.shape[1], dtype=np.int64))]
    done: list[Leaf] = []
    while waiting:
        group = waiting.pop(0)
        if len(group.rows_M) <= leaf or len(group.path) == levels:
            done.append(group)
            continue
        labels_M = spectral_labels(chosen_UN[:, group.rows_M], clusters, seed=seed)
        found = np.unique(labels_M)
        if len(found) == 1:
            done.append(group)
            continue
        waiting += [Leaf((*group.path, place), group.rows_M[labels_M == label]) for place, label in enumerate(found)]
    return done


def spectral_labels(chosen_UM: csr_array, clusters: int, *, seed: int = 0) -> Rows:
    """A cluster [M] for every item, below ``clusters``; items without a co-occurring item are in the first."""
    items = chosen_UM.shape[1]
    clusters = min(clusters, items)
    vectors_MK = _eigenvectors(chosen_UM.astype(np.float64), clusters, seed)
    _, _, pivots = qr(vectors_MK.T, mode="economic", pivoting=True)
    left_KK, _, right_KK = svd(vectors_MK[pivots[:clusters]].T)
    labels: Rows = np.abs(vectors_MK @ (left_KK @ right_KK)).argmax(1).astype(np.int64)
    return labels


def _eigenvectors(chosen_UM: csr_array, count: int, seed: int) -> Doubles:
    """Of the normalised co-occurrence graph, the leading ``count``, [M, count]."""
    items = chosen_UM.shape[1]
    own_M = np.asarray(chosen_UM.multiply(chosen_UM).sum(0)).reshape(-1)  # how often an item meets itself
    degree_M = chosen_UM.T @ np.asarray(chosen_UM.sum(1)).reshape(-1) - own_M
    scale_M = np.where(degree_M > 0, 1 / np.sqrt(np.maximum(degree_M, 1e-12)), 0.0)

    def times(vector_M: Doubles) -> Doubles:
        flat_M = scale_M * vector_M.reshape(-1)
        product: Doubles = scale_M * (chosen_UM.T @ (chosen_UM @ flat_M) - own_M * flat_M)
        return product

    if items <= max(DENSE, count + 1):
        graph_MM = (chosen_UM.T @ chosen_UM).toarray() - np.diag(own_M)
        _, vectors_MM = np.linalg.eigh(scale_M[:, None] * graph_MM * scale_M)
        dense: Doubles = vectors_MM[:, -count:] * (degree_M > 0)[:, None]
        return dense
    start_M = np.random.default_rng(seed).normal(size=items)
    operator = LinearOperator((items, items), matvec=times, dtype=np.float64)
    _, vectors_MK = eigsh(operator, k=count, which="LA", v0=start_M)
    found: Doubles = vectors_MK * (degree_M > 0)[:, None]
    return found


def choices(sequences: Iterable[Rows], items: int) -> csr_array:
    """Users' choices [U, N] from their sequences of rows: 1 where an item is in the sequence, however often."""
    sets = [np.unique(sequence) for sequence in sequences]
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in sets])]).astype(np.int64)
    rows = np.concatenate(sets) if sets else np.empty(0, np.int64)
    return csr_array((np.ones(len(rows)), rows, offsets), shape=(len(sets), items))
