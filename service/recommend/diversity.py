"""A choice among retrieved items that repeats itself less: maximal marginal relevance, and a limit for each category.

Works on any ranked list; the order of one that asks for neither is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Diversity:
    """`mmr`: weight of being unlike what is chosen already, 0 (the order is kept) to 1. `per_category`: the most items
    of one category; None: no limit. `candidates`: how many retrieved items are chosen from."""

    mmr: float = 0.0
    per_category: int | None = None
    candidates: int = 100


def choose(
    scores: Sequence[float],
    categories: Sequence[Sequence[str]],
    k: int,
    wanted: Diversity,
    alike: Callable[[], Callable[[int], NDArray[np.float32]]],
) -> list[int]:
    """Return the places of at most k items of a ranked list, in the order they are chosen.

    Each step takes the item with the largest (1 - mmr) r - mmr max cos(item, chosen), where r is the score scaled to
    [0, 1] over the list (Carbonell and Goldstein 1998, their lambda = 1 - mmr); equal ones in the order of the list.
    An item of a category that is full is passed over; items without a category are not limited.

    Args:
        scores: of the list, best first [C].
        categories: of each item.
        k: how many.
        wanted: weight and limit.
        alike: returns what gives the cosines [C] of all items with that of a place; called only where the weight is
            above 0.
    """
    relevance_C = _scaled(np.asarray(scores, np.float64))
    cosines_of = alike() if wanted.mmr and len(scores) else None
    nearest_C = np.full(len(scores), -1.0)  # cosine with the most similar chosen item
    open_C = np.ones(len(scores), dtype=bool)
    taken: Counter[str] = Counter()
    chosen: list[int] = []
    while len(chosen) < k and open_C.any():
        worth_C = relevance_C if cosines_of is None else (1 - wanted.mmr) * relevance_C - wanted.mmr * nearest_C
        place = int(np.argmax(np.where(open_C, worth_C, -np.inf))) if cosines_of is not None else int(np.argmax(open_C))
        open_C[place] = False
        if wanted.per_category is not None:
            names = set(categories[place])
            if any(taken[name] >= wanted.per_category for name in names):
                continue
            taken.update(names)
        chosen.append(place)
        if cosines_of is not None:
            nearest_C = np.maximum(nearest_C, cosines_of(place))
    return chosen


def _scaled(scores_C: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores between 0 and 1; all 1 where they are equal."""
    if not scores_C.size or scores_C.max() == scores_C.min():
        return np.ones_like(scores_C)
    scaled: NDArray[np.float64] = (scores_C - scores_C.min()) / (scores_C.max() - scores_C.min())
    return scaled
