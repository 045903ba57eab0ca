"""gBCE: binary cross-entropy over sampled negatives, corrected for their number (Petrov and Macdonald 2023, gSASRec).

With few negatives plain binary cross-entropy learns probabilities that are far too high, because it hardly meets the
items that are not chosen. gBCE takes the probability of the target to the power beta of `beta_of`.

Shape legend: P positions, K sampled negatives, N items.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.objectives.base import Candidates, ItemVectors, Objective, ObjectiveSpec


def beta_of(negatives: int, items: int, calibration: float) -> float:
    """The power of the target's probability: alpha (t (1 - 1/alpha) + 1/alpha), with alpha = K / (N - 1).

    Args:
        negatives: K, draws for a target; with N - 1 or more nothing is to be corrected.
        items: N, at least 2.
        calibration: t in [0, 1]; 0 gives 1 (plain binary cross-entropy), 1 gives alpha.
    """
    alpha = min(1.0, negatives / (items - 1))
    return 1 - calibration * (1 - alpha)  # the same, without a rounding where calibration is 0


def gbce(positive_P: Tensor, negative_PK: Tensor, beta: float) -> Tensor:
    """Sum over positions of ``-(beta log σ(positive) + Σ log(1 - σ(negative))) / (K + 1)``.

    Args:
        positive_P: scores of the targets.
        negative_PK: scores of the drawn items.
        beta: see `beta_of`.
    """
    loss_P = beta * F.softplus(-positive_P) + F.softplus(negative_PK).sum(-1)
    loss: Tensor = loss_P.sum() / (negative_PK.shape[-1] + 1)
    return loss


class GeneralisedBce(Objective):
    """Negatives are drawn evenly from all candidates, once a batch; as published, a draw may be a position's target.

    Against the paper: one set of negatives serves all positions of a batch instead of one set a position.
    """

    settings = frozenset({"negatives", "calibration"})
    needs_all = True
    chosen_C: Tensor

    def __init__(self, spec: ObjectiveSpec, candidates: Candidates) -> None:
        super().__init__(spec, candidates)
        chosen_C = np.flatnonzero(candidates.chosen_N)
        self.register_buffer("chosen_C", torch.from_numpy(chosen_C), False)
        self.beta = beta_of(spec.negatives, max(2, len(chosen_C)), spec.calibration)

    def forward(self, users_PD: Tensor, items: ItemVectors, targets_P: Tensor, seen_S2: Tensor | None = None) -> Tensor:
        items_ND = items.all()
        draws_K = torch.randint(len(self.chosen_C), (self.spec.negatives,), device=self.chosen_C.device)
        positive_P = (users_PD * items_ND[targets_P]).sum(-1)
        return gbce(positive_P, users_PD @ items_ND[self.chosen_C[draws_K]].T, self.beta)


OBJECTIVE = GeneralisedBce
