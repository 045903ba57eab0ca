"""Softmax over all items that anybody has chosen."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from training.objectives.base import Candidates, ItemVectors, Objective, ObjectiveSpec
from training.objectives.softmax import full_softmax


class FullSoftmax(Objective):
    """``-log softmax(users · items)[target]`` over the candidates."""

    settings = frozenset({"label_smoothing", "mask_seen"})
    needs_all = True
    chosen_C: Tensor
    places_N: Tensor

    def __init__(self, spec: ObjectiveSpec, candidates: Candidates) -> None:
        super().__init__(spec, candidates)
        self.register_buffer("chosen_C", torch.from_numpy(np.flatnonzero(candidates.chosen_N)), False)
        self.register_buffer("places_N", torch.from_numpy(np.cumsum(candidates.chosen_N) - 1), False)

    def forward(self, users_PD: Tensor, items: ItemVectors, targets_P: Tensor, seen_S2: Tensor | None = None) -> Tensor:
        items_ND = items.all()
        if len(self.chosen_C) < len(items_ND):
            items_ND, targets_P = items_ND[self.chosen_C], self.places_N[targets_P]
            if seen_S2 is not None:  # what was chosen before is a candidate
                seen_S2 = torch.stack([seen_S2[:, 0], self.places_N[seen_S2[:, 1]]], dim=1)
        smoothing = self.spec.label_smoothing
        return full_softmax(users_PD, items_ND, targets_P, label_smoothing=smoothing, seen_S2=seen_S2)


OBJECTIVE = FullSoftmax
