"""Figures by kind of question: how popular the target is in training, and how long the history is."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from training.evaluation.metrics import Ints, rank_report

LENGTHS = (1, 6, 11, 21, 51)
"""Least history lengths of the groups."""
PARTS = 3
"""Groups of about as many questions each, by the popularity of the target; items without interactions are one more."""
COLD = "0 (cold)"

Groups = dict[str, npt.NDArray[np.bool_]]


def by_length(lengths_T: Ints) -> Groups:
    """Questions by the number of items in the history; groups without a question are left out."""
    ends = [*(least - 1 for least in LENGTHS[1:]), None]
    found = {
        f"{least}–{end}" if end else f"{least} or more": (lengths_T >= least) & (lengths_T <= (end or lengths_T.max()))
        for least, end in zip(LENGTHS, ends, strict=True)
    }
    return {name: group for name, group in found.items() if group.any()}


def by_popularity(counts_T: Ints) -> Groups:
    """Questions by how often their target was chosen in training, the rarest first; ties stay together."""
    found: Groups = {COLD: counts_T == 0}
    chosen = counts_T[counts_T > 0]
    if len(chosen):
        cuts = np.quantile(chosen, np.linspace(0, 1, PARTS + 1)[1:-1], method="higher")
        bounds = [1, *(int(cut) + 1 for cut in cuts), int(chosen.max()) + 1]
        for low, high in itertools.pairwise(bounds):
            if high > low:
                name = f"{low}" if high - low == 1 else f"{low}–{high - 1}"
                found[name] = (counts_T >= low) & (counts_T < high)
    return {name: group for name, group in found.items() if group.any()}


def group_figures(ranks_T: Ints, groups: Groups, *, seed: int) -> dict[str, dict[str, Any]]:
    """Recall@10 and NDCG@10 of each group, with intervals."""
    return {name: rank_report(ranks_T[group], cuts=(10,), seed=seed).to_dict() for name, group in groups.items()}
