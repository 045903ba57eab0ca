"""Candidates that one prompt lists, and that are compared with each other (`llamarec`, `llara`): their order in the
prompt, their distribution over several prompts (windows), and scores that can be compared between prompts.

A score depends on the candidates of its own window only, so windows can be scored in separate batches.

Shape legend: C candidates, N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling.encoder.prompt import FreeItem
from modeling.generation.api import Turn
from modeling.generation.consecutive import consecutive
from modeling.generation.shared_prefix import KeptPrompt
from modeling.methods.base_ranking import Item, RankPart, RankPrompt


@dataclass(frozen=True)
class ListedCandidates(RankPrompt):
    """Adds what a ranker needs that compares candidates.

    Attributes:
        rows: all catalog rows of the history, from which a dense artifact computes the order of the candidates.
        windows: of a part, the number of candidates of each window, whose candidates are in prompt order; empty: the
            candidates have to be ordered and distributed.
        kept: the history as it was read for another part.
    """

    rows: tuple[int, ...] = ()
    windows: tuple[int, ...] = ()
    kept: KeptPrompt | None = None

    def order(self, known_N: NDArray[Any]) -> NDArray[np.int64]:
        """Indices [C] of the candidates in prompt order, whatever their order in the request: catalog items by
        ``known_N``, highest first, then free titles, by title."""
        keys = [
            (True, 0.0, item.title) if isinstance(item, FreeItem) else (False, -float(known_N[item]), str(item))
            for item in self.candidates
        ]
        return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)


class ListingRanker:
    """The part of a `CandidateRanker` that distributes candidates over prompts and prompts over batches."""

    @property
    def most_listed(self) -> int:
        """Maximum number of candidates in one prompt."""
        raise NotImplementedError

    def order(self, prompt: RankPrompt) -> NDArray[np.int64]:
        """Indices [C] of the candidates in prompt order."""
        raise NotImplementedError

    def listed_positions(self, candidates: Sequence[Item], windows: int) -> int:
        """Positions that are read for candidates in so many prompts, without the history."""
        raise NotImplementedError

    def windows(self, prompt: RankPrompt, turn: Turn) -> list[NDArray[np.int64]]:
        """Indices of the candidates of each prompt."""
        assert isinstance(prompt, ListedCandidates)
        if prompt.windows:
            return np.split(np.arange(len(prompt.candidates)), np.cumsum(prompt.windows)[:-1])
        with turn():
            return windows_of(self.order(prompt), self.most_listed)

    def divide(self, prompt: RankPrompt, most: int, *, turn: Turn = nullcontext) -> list[RankPart]:
        """See `CandidateRanker.divide`; a part holds whole windows."""
        assert isinstance(prompt, ListedCandidates)
        windows, given = self.windows(prompt, turn), prompt.candidates
        lengths = [self.listed_positions([given[place] for place in places], 1) for places in windows]
        shared, kept = prompt.length - sum(lengths), KeptPrompt()
        parts: list[RankPart] = []
        for group in consecutive(lengths, most - shared):
            places = [int(place) for number in group for place in windows[number]]
            length = sum(lengths[number] for number in group) + (0 if parts else shared)
            sizes = tuple(len(windows[number]) for number in group)
            candidates = tuple(given[place] for place in places)
            part = replace(prompt, candidates=candidates, length=length, windows=sizes, kept=kept)
            parts.append(RankPart(tuple(places), part))
        return parts


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
