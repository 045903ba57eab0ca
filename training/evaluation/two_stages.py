"""Both stages of a recommendation together, and the dense stage alone for the same users.

The best unseen items of a dense artifact are put into the order of a ranker (`modeling.methods.base_ranking.Rerank`).
Where the target is not among them, no ranker can find it, and its rank is that of the dense stage.

Shape legend: T targets, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling.generation.api import ListQuery
from modeling.methods.base_ranking import Rerank
from training.evaluation.full_ranking import SHOWN, Evaluation, evaluation_of
from training.evaluation.metrics import Interval, paired_bootstrap, rank_report


@dataclass(frozen=True)
class TwoStages:
    """Ranks of T targets in the whole catalog without seen items: by the dense stage, and when a ranker has ordered its
    first candidates; ``inside_T`` says for which targets it could."""

    dense_T: NDArray[np.int64]
    merged_T: NDArray[np.int64]
    inside_T: NDArray[np.bool_]

    def figures(self, *, seed: int) -> dict[str, float]:
        """NDCG@10 overall and where the target was among the candidates, of both, and the paired difference overall."""
        found = {"questions": float(len(self.dense_T)), "inside": float(self.inside_T.mean())}
        for name, figure in self.intervals(seed=seed).items():
            found[name] = figure.value
        pair = paired_bootstrap(self.merged_T, self.dense_T, cuts=(10,), seed=seed)["ndcg@10"]
        return found | {"difference": pair.difference, "difference_low": pair.low, "difference_high": pair.high}

    def intervals(self, *, seed: int) -> dict[str, Interval]:
        """NDCG@10 with its interval: ``dense_ndcg@10`` and ``ndcg@10`` of all targets, ``dense_subset_ndcg@10`` and
        ``subset_ndcg@10`` of those among the candidates, where there are any."""
        found = {}
        for name, ranks_T in (("dense_", self.dense_T), ("", self.merged_T)):
            for part, asked in (("", ranks_T), ("subset_", ranks_T[self.inside_T])):
                if len(asked):
                    found[f"{name}{part}ndcg@10"] = rank_report(asked, cuts=(10,), seed=seed).accuracy["ndcg@10"]
        return found


def evaluate_two_stages(
    both: Rerank,
    alone: Evaluation,
    popularity_N: NDArray[np.int64],
    *,
    seed: int = 0,
    progress: Callable[[int], object] = lambda done: None,
) -> tuple[Evaluation, TwoStages]:
    """Answer the questions that the dense stage has answered with both stages.

    Args:
        both: the two stages; at least `SHOWN` candidates, since lists of so many are evaluated.
        alone: answers of its retriever.
        popularity_N: how often each item was chosen.
        seed: of intervals.
        progress: called with the number of questions answered since the last call.

    Returns:
        The evaluation of both stages, and the ranks of both side by side.
    """
    targets, count = alone.targets, both.candidates
    histories = [history.astype(np.int64) for history in targets.histories()]
    rows_TC = np.full((len(targets), max(count, SHOWN)), -1, np.int64)
    for number, history in enumerate(histories):
        found_C, _ = both.rank(history.tolist(), ListQuery(count, history))
        rows_TC[number, : len(found_C)] = found_C
        progress(1)
    hits_TC = rows_TC == targets.rows_T[:, None]
    inside_T: NDArray[Any] = hits_TC.any(1)
    # An approximate index may miss a target whose exact rank is within the candidates: it is behind them then.
    merged_T = np.where(inside_T, hits_TC.argmax(1) + 1, np.maximum(alone.ranks_T, count + 1)).astype(np.int64)
    evaluation = evaluation_of(merged_T, rows_TC[:, :SHOWN], targets, histories, popularity_N, seed=seed)
    return evaluation, TwoStages(alone.ranks_T, merged_T, inside_T)
