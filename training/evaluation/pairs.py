"""Area under the curve of yes and no questions: how often a liked item has a higher score than one that is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from training.evaluation.metrics import RESAMPLES, Interval


@dataclass(frozen=True)
class Answers:
    """Q questions: ``right_Q`` says whether the answer is yes, ``scores_Q`` is higher the more the model says so."""

    right_Q: NDArray[np.bool_]
    scores_Q: NDArray[np.float32]

    def auc(self, *, seed: int = 0) -> Interval:
        """Area under the curve with its 95 % bootstrap interval over questions.

        Raises:
            ValueError: all answers are the same.
        """
        rng, found = np.random.default_rng(seed), []
        for _ in range(RESAMPLES):
            drawn = rng.integers(len(self.right_Q), size=len(self.right_Q))
            if 0 < self.right_Q[drawn].sum() < len(drawn):
                found.append(area_under_curve(self.right_Q[drawn], self.scores_Q[drawn]))
        whole = area_under_curve(self.right_Q, self.scores_Q)
        low, high = np.percentile(found, (2.5, 97.5))
        return Interval(whole, float(low), float(high))


def area_under_curve(right_Q: NDArray[Any], scores_Q: NDArray[Any]) -> float:
    """Share of pairs of a yes and a no that are in order, equal scores counting half (Mann and Whitney 1947).

    Raises:
        ValueError: there is no yes or no no, or a score is no number.
    """
    yes = int(np.sum(right_Q))
    if not 0 < yes < len(right_Q):
        raise ValueError(f"{yes} of {len(right_Q)} answers are yes: both answers are needed for an area")
    if np.isnan(scores_Q).any():
        raise ValueError("a score is NaN, which cannot be ranked")
    ranks_Q = rankdata(scores_Q)
    return float((ranks_Q[np.asarray(right_Q, bool)].sum() - yes * (yes + 1) / 2) / (yes * (len(right_Q) - yes)))
