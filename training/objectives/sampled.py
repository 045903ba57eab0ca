"""Softmax over the target and sampled negatives, with the logQ correction."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from training.objectives.base import Candidates, ItemVectors, Objective, ObjectiveSpec
from training.objectives.softmax import sampled_softmax


class SampledSoftmax(Objective):
    """Negatives are drawn once a batch, from the popularity raised to a power."""

    settings = frozenset({"negatives", "popularity_power", "mask_seen"})
    needs_all = True
    log_draws_N: Tensor

    def __init__(self, spec: ObjectiveSpec, candidates: Candidates) -> None:
        super().__init__(spec, candidates)
        draws_N = candidates.chosen_N * (candidates.popularity_N.astype(np.float64) + 1.0) ** spec.popularity_power
        draws_N *= spec.negatives / draws_N.sum()
        self.register_buffer("log_draws_N", torch.from_numpy(draws_N).log().float(), False)

    def forward(self, users_PD: Tensor, items: ItemVectors, targets_P: Tensor, seen_S2: Tensor | None = None) -> Tensor:
        items_ND = items.all()
        negatives_K = torch.multinomial(self.log_draws_N.exp(), self.spec.negatives, replacement=True)
        return sampled_softmax(users_PD, items_ND, targets_P, negatives_K, self.log_draws_N, seen_S2=seen_S2)


OBJECTIVE = SampledSoftmax
