"""Popularity, transitions and neighbours, counted in the training part, and words of titles: the home of the formulas.

The floors (`training.evaluation.baselines`) rank with these models, and recipes of the method ``counts`` write them as
artifacts.

Shape legend: N items, R items of a block, U users, V words, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from index.text import terms
from modeling.methods.counts import CountsModel, CountsTable, Rule
from training.data.cooccurrence import neighbour_vectors
from training.data.splits import FittedOn, Split
from training.evaluation.metrics import Floats

LAST = 10
DECAY = 0.8
BLOCK = 1024
"""Items whose similarities are computed at a time where the nearest alone are kept."""
BLOCK_NUMBERS = 1 << 24
"""Similarities that are computed at a time where few of them are 0."""


def popularity_counts(split: Split, fitted_on: FittedOn = "train") -> CountsModel:
    """The same scores for everyone: how often each item was taken."""
    counts_N = split.popularity(fitted_on).astype(np.float64)
    return _model("popularity", counts_N, sp.csr_array((len(counts_N), len(counts_N))))


def markov_counts(split: Split, fitted_on: FittedOn = "train") -> CountsModel:
    """Counts of transitions from the last item; items without one are ordered by popularity, scaled below any count."""
    offsets, rows = split.sequences(fitted_on)
    follows = np.ones(max(len(rows) - 1, 0), dtype=bool)
    inner = offsets[1:-1]
    follows[inner[(inner > 0) & (inner < len(rows))] - 1] = False  # the last item of one user, the first of the next
    items = split.dataset.n_items
    counts_NN = sp.csr_array(
        (np.ones(int(follows.sum())), (rows[:-1][follows], rows[1:][follows])), shape=(items, items)
    )
    popularity_N = split.popularity(fitted_on)
    return _model("markov", popularity_N / (popularity_N.max() + 1), counts_NN)


def item_knn_counts(
    split: Split,
    fitted_on: FittedOn = "train",
    *,
    last: int = LAST,
    decay: float = DECAY,
    neighbours: int | None = None,
) -> CountsModel:
    """Cosine between items over users, where each user's row has length 1, summed over the decayed recent history.

    Args:
        split: its sequences are counted.
        fitted_on: part of them.
        last: newest items that are looked up.
        decay: what each step back counts of the one after it.
        neighbours: most similar items that are kept for each item; None keeps all.
    """
    offsets, rows = split.sequences(fitted_on)
    users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    taken_UN = sp.csr_array((np.ones(len(rows)), (users, rows)), shape=(len(offsets) - 1, split.dataset.n_items))
    taken_UN.data[:] = 1.0  # an item taken twice counts once
    unit_UN = sp.diags_array(inverse(lengths(taken_UN, axis=1))) @ taken_UN
    unit_UN = unit_UN @ sp.diags_array(inverse(lengths(unit_UN, axis=0)))
    unit_UN = sp.csc_array(unit_UN)
    if neighbours is None:
        similar_NN = _similar(unit_UN, slice(0, split.dataset.n_items))
    else:  # in blocks, so that no more than what is kept, and a block, is in memory
        blocks = _blocks(split.dataset.n_items, BLOCK)
        similar_NN = sp.csr_array(sp.vstack([_nearest(_similar(unit_UN, block), neighbours) for block in blocks]))
    return _model("item-knn", np.zeros(split.dataset.n_items), similar_NN, last=last, decay=decay)


def hybrid_knn_counts(
    split: Split,
    fitted_on: FittedOn = "train",
    *,
    last: int = LAST,
    decay: float = DECAY,
    neighbours: int | None = None,
) -> CountsModel:
    """Cosine of titles plus cosine of neighbours in histories, summed over the decayed recent history.

    An entry of the table is the similarity of two items, less that of the most similar item that is left out; none is
    below 0. The same number is taken from all entries of a row, so items that are kept in the rows of a history are
    ordered by their similarities. Where all are kept, it is that of the least similar item, and the order of all items
    is that of the similarities themselves.

    Args:
        split: its sequences are counted, and the titles of its items are compared.
        fitted_on: part of the sequences.
        last: newest items that are looked up.
        decay: what each step back counts of the one after it.
        neighbours: most similar items that are kept for each item; None keeps all.
    """
    items = split.dataset.n_items
    place = items - 1 - min(neighbours or items, items - 2)  # of the similarity at the cut, in ascending order
    words_NV = title_words(split.dataset.titles)
    words_VN = sp.csr_array(words_NV.T)
    near_ND = neighbour_vectors(split.train_rows(fitted_on), items)
    kept: list[Any] = []
    for block in _blocks(items, max(BLOCK_NUMBERS // items, 1)):
        similar_RN = (words_NV[block] @ words_VN).astype(np.float32).toarray() + near_ND[block] @ near_ND.T
        np.fill_diagonal(similar_RN[:, block], -np.inf)  # an item says nothing about itself
        similar_RN -= np.partition(similar_RN, place, axis=1)[:, [place]]
        kept.append(sp.csr_array(similar_RN.clip(min=0)))
    return _model("hybrid-knn", np.zeros(items), sp.csr_array(sp.vstack(kept)), last=last, decay=decay)


def _blocks(items: int, size: int) -> list[slice]:
    return [slice(first, min(first + size, items)) for first in range(0, items, size)]


def _similar(unit_UN: Any, rows: slice) -> Any:
    """Similarities [R, N] of some items to all others, none to themselves."""
    found_RN = sp.csr_array(unit_UN[:, rows].T @ unit_UN)
    found_RN.setdiag(0, k=rows.start)
    found_RN.eliminate_zeros()
    return found_RN


def _nearest(similar_NN: Any, count: int) -> Any:
    """The ``count`` largest entries of each row; of equal ones those of the lower columns."""
    rows = np.repeat(np.arange(similar_NN.shape[0]), np.diff(similar_NN.indptr))
    order = np.lexsort((similar_NN.indices, -similar_NN.data, rows))
    place = np.arange(len(order)) - similar_NN.indptr[rows[order]]
    kept = order[place < count]
    return sp.csr_array((similar_NN.data[kept], (rows[kept], similar_NN.indices[kept])), shape=similar_NN.shape)


def _model(rule: Rule, prior_N: Floats, table_NN: Any, *, last: int = 1, decay: float = 1.0) -> CountsModel:
    table_NN.sum_duplicates()
    table = CountsTable(prior_N, table_NN.indptr, table_NN.indices, table_NN.data)
    return CountsModel(table, rule, last=last, decay=decay)


def title_words(titles: Sequence[str]) -> Any:
    """Titles as sparse vectors of weighted words [N, V], of length 1 (all 0 for a title without a word).

    A word weighs (1 + ln count) · ln(1 + N / titles with the word).
    """
    vocabulary: dict[str, int] = {}
    rows, words = [], []
    for row, title in enumerate(titles):
        for word in terms(title):
            rows.append(row)
            words.append(vocabulary.setdefault(word, len(vocabulary)))
    counts_NV = sp.csr_array((np.ones(len(rows)), (rows, words)), shape=(len(titles), max(len(vocabulary), 1)))
    counts_NV.sum_duplicates()
    counts_NV.data = 1 + np.log(counts_NV.data)
    titles_with_word = np.maximum(np.bincount(counts_NV.indices, minlength=counts_NV.shape[1]), 1)
    weighted_NV = counts_NV @ sp.diags_array(np.log(1 + len(titles) / titles_with_word))
    return sp.csr_array(sp.diags_array(inverse(lengths(weighted_NV, axis=1))) @ weighted_NV)


def lengths(matrix: Any, axis: int) -> Any:
    """Euclidean lengths of the rows (``axis`` 1) or columns (0) of a sparse matrix."""
    return np.sqrt(matrix.multiply(matrix).sum(axis=axis))


def inverse(values: Any) -> Floats:
    """1 / value, and 0 where there is nothing to divide by."""
    values = np.asarray(values, dtype=np.float64)
    found: Floats = np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)
    return found
