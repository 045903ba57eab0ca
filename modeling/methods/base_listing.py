"""Candidates that one prompt lists, and that are compared with each other (`llamarec`, `llara`): their order in the
prompt, their distribution over several prompts, and scores that can be compared between prompts.

Shape legend: C candidates, N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling.encoder.prompt import FreeItem
from modeling.methods.base_ranking import RankPrompt


@dataclass(frozen=True)
class ListedCandidates(RankPrompt):
    """Adds all catalog rows of the history, from which a dense artifact computes the order of the candidates."""

    rows: tuple[int, ...] = ()

    def order(self, known_N: NDArray[Any]) -> NDArray[np.int64]:
        """Indices [C] of the candidates in prompt order, whatever their order in the request: catalog items by
        ``known_N``, highest first, then free titles, by title."""
        keys = [
            (True, 0.0, item.title) if isinstance(item, FreeItem) else (False, -float(known_N[item]), str(item))
            for item in self.candidates
        ]
        return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)


def windows_of(order_C: NDArray[np.int64], most: int) -> list[NDArray[np.int64]]:
    """Indices of the candidates of each prompt, at most ``most`` each: of W prompts, every W-th candidate, so that the
    prompts are about equally good and their sizes differ by one at most."""
    count = -(-len(order_C) // most)
    return [order_C[start::count] for start in range(count)]


def window_scores(windows: Sequence[NDArray[np.int64]], logs: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """Scores [C] of the candidates of all windows.

    Args:
        windows: as of `windows_of`.
        logs: logarithms of weights of each window's candidates, up to a constant of the window.

    Returns:
        Log probability of a candidate among those of its window plus the log of their number; 0 is chance.
    """
    scores_C = np.empty(sum(map(len, windows)), np.float32)
    for places, log_weights in zip(windows, logs, strict=True):
        given = log_weights.astype(np.float64)
        scores_C[places] = given - np.logaddexp.reduce(given) + np.log(len(places))
    return scores_C
