"""In-batch contrastive loss (InfoNCE): the other targets of the batch are the negatives.

An item is a negative as often as it is a target, so that popular items would be pushed down. The logQ correction takes
that out (Yi et al. 2019): a negative drawn with probability q in each of P positions has its logit lowered by log(P q).
A negative that is the position's own target is left out: it is no negative.

With a queue, vectors of items of the batches before are negatives too (`training.loop.momentum`). They are targets of
earlier positions, so that they are corrected in the same way, for P + Q positions in all.

Shape legend: P positions, U distinct items of the batch, Q items of earlier batches, N items, D item dimension.
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

    settings = frozenset({"logq", "symmetric", "mask_seen", "queue"})
    log_shares_N: Tensor
    remembered: tuple[Tensor, Tensor] | None = None
    """Vectors [Q, D] and rows [Q] of items of earlier batches, without gradient."""

    def __init__(self, spec: ObjectiveSpec, candidates: Candidates) -> None:
        super().__init__(spec, candidates)
        shares_N = np.maximum(candidates.shares_N, 1e-12)  # what is never a target is never looked up
        self.register_buffer("log_shares_N", torch.from_numpy(shares_N).log().float(), False)

    def forward(self, users_PD: Tensor, items: ItemVectors, targets_P: Tensor, seen_S2: Tensor | None = None) -> Tensor:
        rows_U, places_P = targets_P.unique(return_inverse=True)
        items_UD = items.of(rows_U)
        slots_VD, rows_V, negatives_K = items_UD, rows_U, places_P
        left_out_S2 = None if seen_S2 is None else among(seen_S2, rows_U)
        if self.remembered is not None:
            keys_QD, rows_Q = self.remembered
            slots_VD, rows_V = torch.cat([items_UD, keys_QD.to(items_UD)]), torch.cat([rows_U, rows_Q])
            negatives_K = torch.cat([places_P, len(rows_U) + torch.arange(len(rows_Q), device=rows_Q.device)])
            also_S2 = self._no_negatives(targets_P, rows_Q, seen_S2)
            also_S2[:, 1] += len(rows_U)
            left_out_S2 = also_S2 if left_out_S2 is None else torch.cat([left_out_S2, also_S2])
        log_expected_V = (self.log_shares_N[rows_V] + math.log(len(negatives_K))).to(users_PD.dtype)
        if not self.spec.logq:
            log_expected_V = torch.zeros_like(log_expected_V)
        loss = sampled_softmax(users_PD, slots_VD, places_P, negatives_K, log_expected_V, seen_S2=left_out_S2)
        if not self.spec.symmetric:
            return loss
        return (loss + _from_items(users_PD, items_UD[places_P], targets_P)) / 2

    def _no_negatives(self, targets_P: Tensor, rows_Q: Tensor, seen_S2: Tensor | None) -> Tensor:
        """Pairs of a position and a place in the queue that holds its own target, or what its user has chosen."""
        out_PQ = targets_P[:, None] == rows_Q[None]
        if seen_S2 is not None:
            size = len(self.log_shares_N)
            codes_PQ = torch.arange(len(targets_P), device=rows_Q.device)[:, None] * size + rows_Q
            out_PQ = out_PQ | torch.isin(codes_PQ, seen_S2[:, 0] * size + seen_S2[:, 1])
        return out_PQ.nonzero()


def _from_items(users_PD: Tensor, items_PD: Tensor, targets_P: Tensor) -> Tensor:
    """The loss from items to users; other users with the same target are no negatives."""
    logits_PP = items_PD @ users_PD.T
    same_PP = targets_P[:, None] == targets_P[None, :]
    own_PP = torch.eye(len(targets_P), dtype=torch.bool, device=targets_P.device)
    logits_PP = logits_PP.masked_fill(same_PP & ~own_PP, -torch.inf)
    loss: Tensor = (logits_PP.logsumexp(-1) - logits_PP.diagonal()).sum()
    return loss


OBJECTIVE = InBatchSoftmax
