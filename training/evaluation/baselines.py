"""Floors: five rankers with nothing to train. A model that does not clear them has learned little worth serving.

All are fitted on the training part, rank the whole catalog, and never return what the user already had.

- popularity: how often an item was taken.
- markov-1: how often an item came right after the user's last one; where nothing did, popularity decides.
- item-knn: cosine between items over users, where a user with many items counts less (each user's row has length
  1), summed over the last ten items, each step back counting 0.8 as much.
- title-tfidf: the same sum over the cosine of titles (tf = 1 + ln count, idf = ln(1 + N / titles with the word));
  of Chinese, Japanese and Korean text pairs of characters stand for words.
- hybrid-knn: that sum plus the same over the cosine of what items stand near in histories
  (`training.data.cooccurrence`): titles speak for items that few have taken, histories for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from modeling.methods.counts import CountsModel
from training.data.cooccurrence import neighbour_vectors
from training.data.splits import FittedOn, Part, Split
from training.evaluation.counting import (
    DECAY,
    LAST,
    item_knn_counts,
    markov_counts,
    popularity_counts,
    title_words,
)
from training.evaluation.metrics import Floats, Ints, Metrics, rank_report, target_ranks

BATCH = 512
TOP = 20

Histories = Sequence[npt.NDArray[np.int32]]
Scorer = Callable[[Histories], Floats]  # histories of B users to scores [B, N]


@dataclass(frozen=True)
class Baseline:
    """The result of one floor: its name, what it was fitted on, the rank of every target and the metrics.

    ``kept_ranks_T``: the ranks with seen items left in, where they were asked for.
    """

    name: str
    fitted_on: FittedOn
    ranks_T: Ints
    metrics: Metrics
    kept_ranks_T: Ints | None = None


def popularity(split: Split, fitted_on: FittedOn = "train") -> Scorer:
    """The same scores for everyone: how often each item was taken."""
    return _scorer(popularity_counts(split, fitted_on))


def markov(split: Split, fitted_on: FittedOn = "train") -> Scorer:
    """Counts of transitions from the last item; items without one are ordered by popularity, scaled below any count."""
    return _scorer(markov_counts(split, fitted_on))


def item_knn(split: Split, fitted_on: FittedOn = "train") -> Scorer:
    """Cosine between items over users, summed over the decayed recent history."""
    return _scorer(item_knn_counts(split, fitted_on))


def _scorer(model: CountsModel) -> Scorer:
    return lambda histories: np.stack([model.scores(history) for history in histories])


def title_tfidf(split: Split, fitted_on: FittedOn = "train") -> Scorer:
    """Cosine between titles, summed over the decayed recent history; titles need no fitting."""
    words_NV = title_words(split.dataset.titles)

    def score(histories: Histories) -> Floats:
        profile_BV = _weights(histories, split.dataset.n_items) @ words_NV
        return np.asarray((words_NV @ profile_BV.toarray().T).T)

    return score


def hybrid_knn(split: Split, fitted_on: FittedOn = "train") -> Scorer:
    """Cosine of titles plus cosine of neighbours in histories, summed over the decayed recent history."""
    near_ND = neighbour_vectors(split.train_rows(fitted_on), split.dataset.n_items)
    titles = title_tfidf(split, fitted_on)

    def score(histories: Histories) -> Floats:
        profile_BD = _weights(histories, split.dataset.n_items) @ near_ND
        scores_BN: Floats = titles(histories) + profile_BD @ near_ND.T
        return scores_BN

    return score


FLOORS: dict[str, Callable[[Split, FittedOn], Scorer]] = {
    "popularity": popularity,
    "markov-1": markov,
    "item-knn": item_knn,
    "title-tfidf": title_tfidf,
    "hybrid-knn": hybrid_knn,
}


def measure_baseline(
    name: str, split: Split, part: Part = "test", fitted_on: FittedOn = "train", seed: int = 0, *, kept: bool = False
) -> Baseline:
    """Rank every target of `part` with one floor (seen items removed, ties at random with `seed`).

    ``kept``: rank with seen items left in too.
    """
    if name not in FLOORS:
        raise ValueError(f"floor {name!r} not found; known floors: {', '.join(FLOORS)}")
    scorer = FLOORS[name](split, fitted_on)
    targets = split.targets(part)
    rng = np.random.default_rng(seed)
    popularity_N = split.popularity(fitted_on)
    rows_T = targets.rows_T
    ranks: list[Ints] = []
    with_seen: list[Ints] = []
    rng_of_kept = np.random.default_rng([seed, 4])
    tops: list[Ints] = []
    profiles: list[float] = []
    for questions in _batches(len(targets)):
        histories = [targets.history(question) for question in questions]
        scores_BN = scorer(histories)
        ranks.append(target_ranks(scores_BN, rows_T[questions], histories, rng))
        if kept:
            with_seen.append(target_ranks(scores_BN, rows_T[questions], None, rng_of_kept))
        tops.append(_top(scores_BN, histories))
        profiles.extend(float(popularity_N[history].mean()) for history in histories)
    ranks_T = np.concatenate(ranks)
    metrics = rank_report(
        ranks_T,
        top_rows_TK=np.concatenate(tops),
        popularity_N=popularity_N,
        history_popularity_T=np.array(profiles),
        seed=seed,
    )
    return Baseline(name, fitted_on, ranks_T, metrics, np.concatenate(with_seen) if kept else None)


def _batches(count: int) -> Iterator[npt.NDArray[np.int64]]:
    for start in range(0, count, BATCH):
        yield np.arange(start, min(start + BATCH, count))


def _top(scores_BN: Floats, seen: Histories) -> npt.NDArray[np.int64]:
    """The best rows per question, seen ones removed; -1 where there are fewer."""
    open_BN = scores_BN.copy()
    for b, rows in enumerate(seen):
        open_BN[b, rows] = -np.inf
    count = min(TOP, open_BN.shape[1])
    best = np.argpartition(-open_BN, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(open_BN, best, axis=1), axis=1, kind="stable")
    best = np.take_along_axis(best, order, axis=1)
    return np.where(np.isneginf(np.take_along_axis(open_BN, best, axis=1)), -1, best)


def _weights(histories: Histories, items: int) -> Any:
    """A sparse [B, N]: the last items of each history, the newest counting 1 and each step back `DECAY` as much."""
    recent = [history[-LAST:] for history in histories]
    lengths = [len(rows) for rows in recent]
    users = np.repeat(np.arange(len(recent)), lengths)
    ages = np.concatenate([np.arange(length)[::-1] for length in lengths])
    return sp.csr_array((DECAY**ages, (users, np.concatenate(recent))), shape=(len(recent), items))
