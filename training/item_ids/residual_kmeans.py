"""Codes of items from their vectors by residual k-means, and what makes codes of different items different.

Level by level, the nearest of a level's centroids is taken off and its number noted, so that items which are alike
begin with the same codes (RQ-KMeans, as in GRID; the residual quantiser of TIGER without its encoder). Items with
equal codes get a last code that counts them (Rajput et al. 2023, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from index.base import FloatArray, RowArray

ITERATIONS = 50


@dataclass(frozen=True)
class CodeReport:
    """Quality of item codes.

    Attributes:
        utilisation: share of used codes, for each level.
        unique: share of the items with unique codes, before the level that resolves collisions.
        collisions: largest number of items with the same codes.
        error: mean squared distance of an item from the sum of its centroids, relative to that from the mean item.
    """

    utilisation: tuple[float, ...]
    unique: float
    collisions: int
    error: float


def residual_kmeans(vectors_ND: FloatArray, *, levels: int, size: int, seed: int = 0) -> tuple[RowArray, FloatArray]:
    """Codes [N, L] and centroids [L, K, D]; the same for the same vectors and seed.

    Raises:
        ValueError: fewer items than codes of a level.
    """
    if len(vectors_ND) < size:
        raise ValueError(f"{len(vectors_ND)} items cannot have {size} codes a level; use fewer")
    residual_ND = np.ascontiguousarray(vectors_ND, np.float32).copy()
    codes, centroids = [], []
    for level in range(levels):
        kmeans = faiss.Kmeans(
            residual_ND.shape[1], size, niter=ITERATIONS, seed=seed + level, max_points_per_centroid=len(vectors_ND),
            min_points_per_centroid=1,
        )  # fmt: skip
        kmeans.train(residual_ND)
        nearest_N = kmeans.index.search(residual_ND, 1)[1][:, 0]
        codes.append(nearest_N.astype(np.int64))
        centroids.append(np.array(kmeans.centroids, np.float32))
        residual_ND -= centroids[-1][nearest_N]
    return np.stack(codes, axis=1), np.stack(centroids)


def with_counter(codes_NL: RowArray) -> RowArray:
    """Codes [N, L + 1]: the last one counts the items with the same codes, in row order."""
    _, group_N = np.unique(codes_NL, axis=0, return_inverse=True)
    group_N = group_N.reshape(-1)
    order = np.argsort(group_N, kind="stable")
    starts = np.r_[0, np.flatnonzero(np.diff(group_N[order])) + 1]
    counter_N = np.empty(len(codes_NL), np.int64)
    counter_N[order] = np.arange(len(codes_NL)) - np.repeat(starts, np.diff(np.r_[starts, len(codes_NL)]))
    return np.concatenate([codes_NL, counter_N[:, None]], axis=1)


def report_codes(codes_NL: RowArray, size: int, rebuilt_ND: FloatArray, vectors_ND: FloatArray) -> CodeReport:
    """Quality of codes [N, L], without the level that resolves collisions."""
    _, counts = np.unique(codes_NL, axis=0, return_counts=True)
    spread: NDArray[np.floating] = vectors_ND - vectors_ND.mean(0)
    return CodeReport(
        utilisation=tuple(len(np.unique(level)) / size for level in codes_NL.T),
        unique=float((counts == 1).sum() / len(codes_NL)),
        collisions=int(counts.max()),
        error=float(((vectors_ND - rebuilt_ND) ** 2).sum() / (spread**2).sum()),
    )
