"""Vectors of items without training interactions: a linear map from titles to the vectors of those that were chosen.

The map is fitted when training is over, by weighted ridge regression (Gantner et al. 2010, "Learning attribute-to-
feature mappings for cold-start recommendations"). The length of what it makes is a factor on all its scores, and puts
them on the scale of the other items: it is the largest with which those lose no more than ``items.cold_cost`` on
validation. Where hardly any item is such, a tenth of the chosen ones take their part in that trial, as if they had no
interactions: so an item that is added later has a length too.

Shape legend: N items, T questions, C width of title vectors, D item dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from modeling.encoder.user_encoder import UserEncoder
from training.data.splits import Split, Targets
from training.evaluation.full_ranking import encode_users, rank_all
from training.evaluation.metrics import question_values
from training.loop.fit import VALIDATION_USERS, FitOptions, sample_targets

RIDGE = 100.0
"""Penalty of the map's weights, in items: title vectors have elements of unit size and weights have mean one."""
LONGEST = 2.0
"""No vector is made longer than this: a catalog in which few items are new would bear almost any length."""
STEPS = 7
FEW = 0.01
"""Share of the catalog below which the items without interactions are too few to choose a length with."""
TRIED = 0.1
"""Share of the chosen items that then take their part."""

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class ColdItems:
    """Record of the treatment of items without interactions.

    Attributes:
        items: their number.
        length: of their vectors, where a chosen item has 1.
        cost: share of NDCG@10 that other items lost in the trial on validation; 0 after a refit, where there is none.
    """

    items: int
    length: float
    cost: float

    def __str__(self) -> str:
        vectors = f"vectors of length {self.length:.2f}, others lost {self.cost:.1%}"
        return f"{self.items} items without interactions: {vectors}"


def map_cold_items(
    encoder: UserEncoder, split: Split, options: FitOptions, *, length: float | None = None
) -> ColdItems:
    """Fit the map of a trained encoder and give it to its item tower.

    Args:
        encoder: its items have ``cold='mapped'``.
        split: questions of its validation part choose the length.
        options: seed, and what was trained on.
        length: chosen before, on a model that has not seen validation.
    """
    items = encoder.items
    popularity_N = split.popularity(options.fitted_on)
    chosen_N = popularity_N > 0
    with torch.no_grad():
        vectors_ND = items.finish(items.table()[: items.size]).float().cpu().numpy()
    text_NC = items.text_NC[: items.size].float().cpu().numpy()
    map_CD, mean_D = fit_map(text_NC, vectors_ND, popularity_N * chosen_N)
    cost = 0.0
    if length is None:
        training = encoder.training
        encoder.eval()
        targets = sample_targets(split.validation, VALIDATION_USERS, options.seed)
        users_TD = encode_users(encoder, list(targets.histories()))
        tried_N, tried_map = ~chosen_N, (map_CD, mean_D)
        if tried_N.mean() < FEW:
            tried_N = chosen_N & (np.random.default_rng([options.seed, 13]).random(len(chosen_N)) < TRIED)
            tried_map = fit_map(text_NC, vectors_ND, popularity_N * (chosen_N & ~tried_N))
        trial = Trial.of(users_TD, targets, vectors_ND, chosen_N, tried_N, mapped(text_NC, *tried_map))
        encoder.train(training)
        length = trial.longest(encoder.spec.items.cold_cost, options.seed)
        cost = trial.cost(length, options.seed)
    items.set_cold(torch.from_numpy(chosen_N), torch.from_numpy(map_CD), torch.from_numpy(mean_D), length)
    return ColdItems(int((~chosen_N).sum()), length, cost)


def fit_map(text_NC: Vectors, vectors_ND: Vectors, popularity_N: NDArray[np.int64]) -> tuple[Vectors, Vectors]:
    """The map [C, D] and the mean [D] that bring titles nearest to vectors, an item weighing the root of its
    popularity: the vectors of items that few chose are noise for the most part. Items with popularity 0 have no say."""
    weights_N = np.sqrt(popularity_N.astype(np.float64))
    weights_N /= max(weights_N.sum(), 1e-12) / max(1, np.count_nonzero(weights_N))
    scale = math.sqrt(text_NC.shape[1])
    inputs_NC = text_NC.astype(np.float64) * scale
    mean_D = (vectors_ND * weights_N[:, None]).sum(0) / max(weights_N.sum(), 1e-12)
    weighted_NC = inputs_NC * weights_N[:, None]
    gram_CC = weighted_NC.T @ inputs_NC + RIDGE * np.eye(inputs_NC.shape[1])
    map_CD = np.linalg.solve(gram_CC, weighted_NC.T @ (vectors_ND - mean_D)) * scale
    return map_CD.astype(np.float32), mean_D.astype(np.float32)


def mapped(text_NC: Vectors, map_CD: Vectors, mean_D: Vectors) -> Vectors:
    """Vectors of unit length [N, D] that the map makes of titles."""
    found_ND = text_NC @ map_CD + mean_D
    unit_ND: Vectors = found_ND / np.maximum(np.linalg.norm(found_ND, axis=1, keepdims=True), 1e-12)
    return unit_ND


@dataclass(frozen=True)
class Trial:
    """Questions whose targets are other items, ranked among all items at some length of the cold ones."""

    users_TD: Vectors
    targets: Targets
    vectors_ND: Vectors
    cold_N: NDArray[np.bool_]
    mapped_ND: Vectors

    @classmethod
    def of(
        cls,
        users_TD: Vectors,
        targets: Targets,
        vectors_ND: Vectors,
        chosen_N: NDArray[np.bool_],
        cold_N: NDArray[np.bool_],
        mapped_ND: Vectors,
    ) -> Trial:
        """The questions of ``targets`` whose target was chosen in training and is not cold here."""
        rows_T = targets.rows_T
        asked = np.flatnonzero(chosen_N[rows_T] & ~cold_N[rows_T])
        kept = Targets(targets.dataset, targets.users_T[asked], targets.positions_T[asked])
        return cls(users_TD[asked], kept, vectors_ND, cold_N, mapped_ND)

    def figures(self, length: float, seed: int) -> tuple[float, float]:
        """NDCG@10 and Recall@10."""
        vectors_ND = np.where(self.cold_N[:, None], self.mapped_ND * length, self.vectors_ND).astype(np.float32)
        seen = list(self.targets.histories())
        ranks_T = rank_all(self.users_TD, vectors_ND, self.targets.rows_T, seen, seed=seed)
        values = question_values(ranks_T, cuts=(10,))
        return float(values["ndcg@10"].mean()), float(values["recall@10"].mean())

    def cost(self, length: float, seed: int) -> float:
        """Share of NDCG@10 that is lost to cold items of this length; none is found at length 0."""
        if not len(self.targets) or not self.cold_N.any() or not (best := self.figures(0.0, seed)[0]):
            return 0.0
        return 1 - self.figures(length, seed)[0] / best

    def longest(self, cost: float, seed: int) -> float:
        """The largest length at which neither figure loses more than ``cost`` of itself, by halving."""
        if not len(self.targets) or not self.cold_N.any():
            return LONGEST
        least = [(1 - cost) * figure for figure in self.figures(0.0, seed)]

        def bearable(length: float) -> bool:
            return all(found >= needed for found, needed in zip(self.figures(length, seed), least, strict=True))

        low, high = 0.0, LONGEST
        if bearable(high):
            return high
        for _ in range(STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if bearable(middle) else (low, middle)
        return low
