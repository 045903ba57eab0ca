"""Vectors of items from what stands near them in histories.

How much more often two items stand near each other than chance would have it (positive pointwise mutual information),
as a matrix, in its leading singular vectors: what skip-gram over histories (item2vec, Barkan and Koenigstein 2016)
approximates, in the form of Levy, Goldberg and Dagan 2015, with their smoothed contexts and halved singular values.

Shape legend: N items, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.linalg import svds

Rows = NDArray[np.int64]

WINDOW = 8
"""Items on each side that count as near; one at distance d counts 1 / d."""
SMOOTHING = 0.75
"""Power of the contexts' frequencies, which keeps rare ones from looking surprising."""


def neighbour_vectors(sequences: Sequence[Rows], items: int, *, dim: int = 128, seed: int = 0) -> NDArray[np.float32]:
    """Unit vectors [N, D] of items; zero where an item stands near no other. D is at most a quarter of N: with as many
    directions as items, none is like another.

    Args:
        sequences: item rows, user by user; of the training part, or the vectors know what is asked.
        items: N.
        dim: most dimensions.
        seed: of the solver's start.
    """
    near_NN = _near(sequences, items)
    if not near_NN.nnz:
        return np.zeros((items, 1), np.float32)
    often_N = np.asarray(near_NN.sum(1)).reshape(-1)
    smooth_N = often_N**SMOOTHING / max((often_N**SMOOTHING).sum(), 1e-12)
    given, context = near_NN.coords
    surprise_E = np.log(near_NN.data / (often_N[given] * smooth_N[context]))
    kept_E = surprise_E > 0
    surprise_NN = coo_array((surprise_E[kept_E], (given[kept_E], context[kept_E])), shape=(items, items))
    start_N = np.random.default_rng(seed).normal(size=items)
    left_ND, weights_D, _ = svds(surprise_NN.tocsr(), k=min(dim, max(1, items // 4)), v0=start_N)
    real_D = weights_D > 1e-6 * weights_D.max()  # the others are noise where a catalog has fewer directions than D
    vectors_ND = left_ND[:, real_D] * np.sqrt(weights_D[real_D])
    lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit_ND: NDArray[np.float32] = np.where(lengths_N1 > 1e-9, vectors_ND / lengths_N1.clip(min=1e-9), 0.0).astype(
        np.float32
    )
    return unit_ND


def _near(sequences: Sequence[Rows], items: int) -> coo_array:
    """Co-occurrence counts of items in a window, weighted by 1 / distance; symmetric [N, N]."""
    first, second, weights = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0)]
    for rows in sequences:
        for distance in range(1, min(WINDOW, len(rows) - 1) + 1):
            first += [rows[:-distance], rows[distance:]]
            second += [rows[distance:], rows[:-distance]]
            weights.append(np.full(2 * (len(rows) - distance), 1 / distance))
    pairs = (np.concatenate(first), np.concatenate(second))
    return coo_array((np.concatenate(weights), pairs), shape=(items, items)).tocsr().tocoo()
