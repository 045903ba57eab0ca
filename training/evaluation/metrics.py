"""Full-ranking metrics from ranks: Recall@K, NDCG@K, MRR with bootstrap intervals; coverage, novelty, popularity lift.

Every question has one right item, so Recall@K is the hit rate HR@K, and NDCG@K is 1 / log2(rank + 1) for a
rank within K (Järvelin and Kekäläinen 2002, with one relevant item). The rank counts all items of the
catalog except those the user already had; it is never a rank among a sample (Krichene and Rendle, KDD
2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

CUTS = (5, 10, 20)
RESAMPLES = 1000

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean over questions with its bootstrap interval (95 % unless said otherwise)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Metrics:
    """Figures of one run over T questions: `accuracy` by name (`recall@10`, `ndcg@10`, `mrr`, …) and `beyond` it."""

    questions: int
    accuracy: dict[str, Interval]
    beyond: dict[str, float]

    def __getitem__(self, name: str) -> float:
        return self.accuracy[name].value if name in self.accuracy else self.beyond[name]

    def to_dict(self, digits: int = 6) -> dict[str, Any]:
        """Plain data for JSON: each accuracy figure with its interval."""
        accuracy = {
            name: {"value": round(i.value, digits), "low": round(i.low, digits), "high": round(i.high, digits)}
            for name, i in self.accuracy.items()
        }
        beyond = {name: round(value, digits) for name, value in self.beyond.items()}
        return {"questions": self.questions, **accuracy, **beyond}


def target_ranks(
    scores_BN: npt.NDArray[np.floating],
    targets_B: npt.NDArray[np.integer],
    seen: Sequence[npt.NDArray[np.integer]] | None,
    rng: np.random.Generator,
) -> Ints:
    """The rank of each target (1 is best) among all N items but those in `seen[b]`; int64 [B].

    Items that score exactly what the target scores come before or after it by chance (`rng`), so equal
    scores for all give Recall@K = K / N. A target that is itself in `seen` can never be recommended and
    gets rank N + 1. Raises ValueError for a NaN: it compares false with everything, and would rank every
    target first.
    """
    if np.isnan(scores_BN).any():
        question = int(np.flatnonzero(np.isnan(scores_BN).any(axis=1))[0])
        raise ValueError(f"the scores of question {question} hold NaN; a model that gives NaN cannot be ranked")
    batch, items = scores_BN.shape
    if len(targets_B) != batch or (seen is not None and len(seen) != batch):
        raise ValueError(f"{batch} rows of scores, {len(targets_B)} targets, {len(seen or targets_B)} seen lists")
    if batch and (targets_B.min() < 0 or targets_B.max() >= items):
        raise ValueError(f"a target lies outside the {items} items: {targets_B.min()} to {targets_B.max()}")
    of_target_B = scores_BN[np.arange(batch), targets_B]
    above_B = (scores_BN > of_target_B[:, None]).sum(axis=1)
    equal_B = (scores_BN == of_target_B[:, None]).sum(axis=1) - 1
    unreachable_B = np.zeros(batch, dtype=bool)
    for b, rows in enumerate(seen or ()):
        rows = np.unique(rows)
        unreachable_B[b] = bool(np.isin(targets_B[b], rows))
        rows = rows[rows != targets_B[b]]
        above_B[b] -= np.count_nonzero(scores_BN[b, rows] > of_target_B[b])
        equal_B[b] -= np.count_nonzero(scores_BN[b, rows] == of_target_B[b])
    ranks_B = 1 + above_B + rng.integers(0, equal_B + 1)
    result: Ints = np.where(unreachable_B, items + 1, ranks_B).astype(np.int64)
    return result


def question_values(ranks_T: Ints, cuts: Sequence[int] = CUTS) -> dict[str, Floats]:
    """Each metric per question [T], from ranks that start at 1."""
    if len(ranks_T) == 0 or ranks_T.min() < 1:
        raise ValueError(f"ranks start at 1 and there must be some; got {len(ranks_T)} with {ranks_T[:3]}")
    ranks = ranks_T.astype(np.float64)
    values: dict[str, Floats] = {}
    for cut in cuts:
        values[f"recall@{cut}"] = (ranks <= cut).astype(np.float64)
        values[f"ndcg@{cut}"] = np.where(ranks <= cut, 1 / np.log2(ranks + 1), 0.0)
    values["mrr"] = 1 / ranks
    return values


def rank_report(
    ranks_T: Ints,
    *,
    top_rows_TK: npt.NDArray[np.integer] | None = None,
    popularity_N: Ints | None = None,
    history_popularity_T: Floats | None = None,
    cuts: Sequence[int] = CUTS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Metrics:
    """Metrics of one run from the targets' ranks, with 95 % bootstrap intervals over questions.

    With the top lists (`top_rows_TK`, rows best first, -1 where fewer) and training popularity also
    `coverage@K`, `novelty@K` and, given each history's mean popularity, `popularity_lift@K` (see
    `beyond_accuracy`).
    """
    values = question_values(ranks_T, cuts)
    table_TM = np.stack(list(values.values()), axis=1)
    low, high = np.percentile(_resampled_means(table_TM, resamples, seed), (2.5, 97.5), axis=0)
    accuracy = {
        name: Interval(float(column.mean()), float(low[at]), float(high[at]))
        for at, (name, column) in enumerate(values.items())
    }
    beyond: dict[str, float] = {}
    if top_rows_TK is not None and popularity_N is not None:
        beyond = beyond_accuracy(top_rows_TK, popularity_N, history_popularity_T)
    return Metrics(len(ranks_T), accuracy, beyond)


def beyond_accuracy(
    top_rows_TK: npt.NDArray[np.integer], popularity_N: Ints, history_popularity_T: Floats | None = None
) -> dict[str, float]:
    """Properties of the lists other than accuracy.

    `coverage@K`: the share of the catalog that is in some list. `novelty@K`: the mean of -log2 p(item) over
    all places of all lists, p being the item's share of training interactions with one added to every item
    (self-information; Zhou et al., PNAS 2010). `popularity_lift@K`: by how much the mean popularity of what
    is recommended is above that of the histories, as a share (0 is none; Abdollahpouri et al., RecSys
    2020).
    """
    cut = top_rows_TK.shape[1]
    shown = top_rows_TK[top_rows_TK >= 0]
    if len(shown) == 0:
        raise ValueError("the top lists hold no item")
    share_N = (popularity_N + 1) / (popularity_N.sum() + len(popularity_N))
    result = {
        f"coverage@{cut}": len(np.unique(shown)) / len(popularity_N),
        f"novelty@{cut}": float(-np.log2(share_N[shown]).mean()),
    }
    if history_popularity_T is not None:
        profile = float(history_popularity_T.mean())
        if profile > 0:
            result[f"popularity_lift@{cut}"] = float(popularity_N[shown].mean()) / profile - 1
    return result


@dataclass(frozen=True)
class Comparison:
    """Paired difference of run A from run B on the same targets: A - B, its 95 % interval, and a two-sided p-value."""

    difference: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(
    ranks_a_T: Ints,
    ranks_b_T: Ints,
    *,
    cuts: Sequence[int] = CUTS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Compare two runs question by question: the same resampled questions count for both (Efron and Tibshirani 1993).

    The p-value is twice the share of resamples on the other side of zero, and at least 1 / resamples.
    """
    if len(ranks_a_T) != len(ranks_b_T):
        raise ValueError(f"the runs have {len(ranks_a_T)} and {len(ranks_b_T)} questions; they must be the same ones")
    a, b = question_values(ranks_a_T, cuts), question_values(ranks_b_T, cuts)
    differences_TM = np.stack([a[name] - b[name] for name in a], axis=1)
    means_SM = _resampled_means(differences_TM, resamples, seed)
    low, high = np.percentile(means_SM, (2.5, 97.5), axis=0)
    other_side = np.minimum((means_SM <= 0).mean(axis=0), (means_SM >= 0).mean(axis=0))
    p_values = np.clip(2 * other_side, 1 / resamples, 1.0)
    return {
        name: Comparison(float(differences_TM[:, at].mean()), float(low[at]), float(high[at]), float(p_values[at]))
        for at, name in enumerate(a)
    }


def _resampled_means(values_TM: Floats, resamples: int, seed: int) -> Floats:
    """Means [S, M] over questions drawn with replacement, one draw of T questions per resample."""
    rng = np.random.default_rng(seed)
    count = len(values_TM)
    means = np.empty((resamples, values_TM.shape[1]))
    for s in range(resamples):
        weights_T = np.bincount(rng.integers(0, count, size=count), minlength=count)
        means[s] = weights_T @ values_TM / count
    return means
