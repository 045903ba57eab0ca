"""Whether servers that are compared do the same work: their answers against scores computed apart from all of them.

Not whether the lists are equal: where two items score nearly the same, rounding may swap them. An answer agrees if each
score in it is the reference's, and no item outside it scores better than one in it, both within a tolerance.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST_COSINE = 0.9999
# For unit vectors of 128 dimensions: a user vector of cosine .9999 moves a score by .0013 in the root mean square.
TOLERANCE = {"fp32": 1e-3, "bf16": 1e-2}

Scored = Sequence[tuple[int, float]]


def disagreement(answer: Scored, scores_N: NDArray[np.float32], seen: Sequence[int], k: int, tolerance: float) -> str:
    """Return how an answer (rows and scores, best first) differs from the reference's scores, or nothing."""
    open_N = scores_N.copy()
    open_N[list(seen)] = -np.inf
    rows, scores = [row for row, _ in answer], [score for _, score in answer]
    if len(rows) != k or len(set(rows)) != k:
        return f"{len(set(rows))} different items where {k} are asked for"
    if set(rows) & set(seen):
        return "an item of the history is recommended"
    wrong = float(np.abs(open_N[rows] - np.asarray(scores)).max())
    if not wrong <= tolerance:
        return f"a score differs by {wrong:.2g}, and {tolerance} is allowed"
    if any(later > earlier + tolerance for earlier, later in itertools.pairwise(scores)):
        return "the best do not come first"
    others_N = open_N.copy()
    others_N[rows] = -np.inf
    if (missed := float(others_N.max() - open_N[rows].min())) > tolerance:
        return f"an item that scores {missed:.2g} more is left out"
    return ""


def lowest_cosine(found_BD: NDArray[np.float32], reference_BD: NDArray[np.float32]) -> float:
    """Return the lowest cosine between vectors of the same history."""
    products_B = (found_BD * reference_BD).sum(1)
    norms_B = np.linalg.norm(found_BD, axis=1) * np.linalg.norm(reference_BD, axis=1)
    return float((products_B / np.maximum(norms_B, 1e-12)).min())


def refuse_unless_same(differences: dict[str, list[str]]) -> None:
    """Raise SystemExit, and print no figure, if any system differs: times of different work are no comparison."""
    found = {name: [each for each in all_of_one if each] for name, all_of_one in differences.items()}
    if any(found.values()):
        lines = [f"{name}: {len(each)} answers differ, the first: {each[0]}" for name, each in found.items() if each]
        raise SystemExit("the systems do not answer the same, so no figures are printed\n" + "\n".join(lines))


def read_items(body: Any, row_of: dict[str, int]) -> list[tuple[int, float]]:
    """Return rows and scores of an answer of any system (BentoML answers a list of one)."""
    found = body[0] if isinstance(body, list) else body
    return [(row_of[item["item_id"]], float(item["score"])) for item in found["items"]]
