"""In-batch contrastive loss (InfoNCE): the other targets of the batch are the negatives.

An item is a negative as often as it is a target, so that popular items would be pushed down. The logQ correction takes
that out (Yi et al. 2019): a negative drawn with probability q in each of P positions has its logit lowered by log(P q).
A negative that is the position's own target is left out: it is no negative.

Shape legend: P positions, U distinct items of the batch, N items, D item dimension.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from training.objectives.base import Candidates, ItemVectors, Objective, ObjectiveSpec
from training.objectives.softmax import among, sampled_softmax


class InBatchSoftmax(Objective):
    """Softmax over the targets of the batch; with ``symmetric``, over its users as well. Each distinct item is encoded
    once a batch."""

    settings = frozenset({"logq", "symmetric", "mask_seen"})
    log_shares_N: Tensor

    def __init__(self, spec: ObjectiveSpec, candidates: Candidates) -> None:
        super().__init__(spec, candidates)
        shares_N = np.maximum(candidates.shares_N, 1e-12)  # what is never a target is never looked up
        self.register_buffer("log_shares_N", torch.from_numpy(shares_N).log().float(), False)

    def forward(self, users_PD: Tensor, items: ItemVectors, targets_P: Tensor, seen_S2: Tensor | None = None) -> Tensor:
        rows_U, places_P = targets_P.unique(return_inverse=True)
        items_UD = items.of(rows_U)
        log_expected_U = self.log_shares_N[rows_U] + math.log(len(targets_P))
        if not self.spec.logq:
            log_expected_U = torch.zeros_like(log_expected_U)
        if seen_S2 is not None:
            seen_S2 = among(seen_S2, rows_U)
        log_expected_U = log_expected_U.to(users_PD.dtype)
        loss = sampled_softmax(users_PD, items_UD, places_P, places_P, log_expected_U, seen_S2=seen_S2)
        if not self.spec.symmetric:
            return loss
        return (loss + _from_items(users_PD, items_UD[places_P], targets_P)) / 2


def _from_items(users_PD: Tensor, items_PD: Tensor, targets_P: Tensor) -> Tensor:
    """The loss from items to users; other users with the same target are no negatives."""
    logits_PP = items_PD @ users_PD.T
    same_PP = targets_P[:, None] == targets_P[None, :]
    own_PP = torch.eye(len(targets_P), dtype=torch.bool, device=targets_P.device)
    logits_PP = logits_PP.masked_fill(same_PP & ~own_PP, -torch.inf)
    loss: Tensor = (logits_PP.logsumexp(-1) - logits_PP.diagonal()).sum()
    return loss


OBJECTIVE = InBatchSoftmax
