"""Softmax over items: full, computed in chunks of the catalog, and sampled with the logQ correction.

Shape legend: P positions with a target, D item dimension, N items, K sampled negatives.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ELEMENTS = 1 << 25
"""Logits held at once by the chunked form: 2^25 floats are 128 MiB."""


def full_softmax(
    users_PD: Tensor,
    items_ND: Tensor,
    targets_P: Tensor,
    *,
    label_smoothing: float = 0.0,
    chunk: int | None = None,
    seen_S2: Tensor | None = None,
) -> Tensor:
    """Sum over positions of ``-log softmax(users · items)[target]``.

    Args:
        users_PD: user vectors, already multiplied by the scale (1 / temperature).
        items_ND: all item vectors.
        targets_P: rows of the next items.
        label_smoothing: share of the target spread evenly over the catalog.
        chunk: items a block; None decides by size and uses one block where the logits fit ``CHUNK_ELEMENTS``.
            Blocks are recomputed in the backward pass, so memory grows with P * chunk rather than P * N.
        seen_S2: pairs of a position and a row that is left out there, none of them a target; without label smoothing.
    """
    if seen_S2 is not None and label_smoothing:
        raise ValueError("label smoothing gives a share of the target to every item, also to those left out")
    size = items_ND.shape[0]
    if chunk is None:
        chunk = max(1, CHUNK_ELEMENTS // max(1, users_PD.shape[0]))
    if chunk >= size:
        logits_PN = _without(users_PD @ items_ND.T, seen_S2)
        return F.cross_entropy(logits_PN, targets_P, reduction="sum", label_smoothing=label_smoothing)
    normalizer_P: Tensor = _ChunkedLogSumExp.apply(users_PD, items_ND, chunk, seen_S2)  # type: ignore[no-untyped-call]
    positive_P = (users_PD * items_ND[targets_P]).sum(-1)
    loss: Tensor = (normalizer_P - positive_P).sum()
    if label_smoothing:
        mean_P = users_PD @ items_ND.mean(0)
        loss = (1 - label_smoothing) * loss + label_smoothing * (normalizer_P - mean_P).sum()
    return loss


def _without(logits_PN: Tensor, seen_S2: Tensor | None, start: int = 0) -> Tensor:
    """Logits of the rows from ``start`` on, those of the pairs set to minus infinity."""
    if seen_S2 is None:
        return logits_PN
    columns_S = seen_S2[:, 1] - start
    within_S = (columns_S >= 0) & (columns_S < logits_PN.shape[1])
    left_out_PN = torch.zeros_like(logits_PN, dtype=torch.bool)
    left_out_PN[seen_S2[within_S, 0], columns_S[within_S]] = True
    return logits_PN.masked_fill(left_out_PN, -torch.inf)


class _ChunkedLogSumExp(torch.autograd.Function):
    """``logsumexp(users @ items.T, -1)`` with a running maximum over blocks; the backward recomputes each block."""

    @staticmethod
    def forward(ctx: Any, users_PD: Tensor, items_ND: Tensor, chunk: int, seen_S2: Tensor | None) -> Tensor:
        total_P = users_PD.new_full((users_PD.shape[0],), -torch.inf)
        for start, block_CD in zip(range(0, len(items_ND), chunk), items_ND.split(chunk), strict=True):
            total_P = torch.logaddexp(total_P, _without(users_PD @ block_CD.T, seen_S2, start).logsumexp(-1))
        ctx.save_for_backward(users_PD, items_ND, total_P)
        ctx.chunk, ctx.seen_S2 = chunk, seen_S2
        return total_P

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        (gradient_P,) = gradients
        users_PD, items_ND, total_P = ctx.saved_tensors
        users_gradient = torch.zeros_like(users_PD)
        items_gradient = torch.empty_like(items_ND) if ctx.needs_input_grad[1] else None  # none of a frozen head
        start = 0
        for block_CD in items_ND.split(ctx.chunk):
            logits_PC = _without(users_PD @ block_CD.T, ctx.seen_S2, start)
            weights_PC = (logits_PC - total_P[:, None]).exp() * gradient_P[:, None]
            users_gradient += weights_PC @ block_CD
            if items_gradient is not None:
                items_gradient[start : start + len(block_CD)] = weights_PC.T @ users_PD
            start += len(block_CD)
        return users_gradient, items_gradient, None, None


def among(seen_S2: Tensor, rows_U: Tensor) -> Tensor:
    """Those of the pairs whose row is in ``rows_U``, ascending, with its place there instead of the row, [S, 2]."""
    positions_S, rows_S = seen_S2[torch.isin(seen_S2[:, 1], rows_U)].unbind(1)
    return torch.stack([positions_S, torch.searchsorted(rows_U, rows_S.contiguous())], dim=1)


def sampled_softmax(
    users_PD: Tensor,
    items_ND: Tensor,
    targets_P: Tensor,
    negatives_K: Tensor,
    log_expected_N: Tensor,
    *,
    seen_S2: Tensor | None = None,
) -> Tensor:
    """Sum over positions of the softmax loss over the target and shared negatives, corrected for how they were drawn.

    A negative j drawn with probability q_j in each of K draws stands for 1 / (K q_j) items, so its logit is lowered
    by log(K q_j) (Bengio and Senécal 2008). The target is always present and is not corrected: it was not sampled
    (Yandex, RecSys 2025). Draws equal to a row's own target are removed from that row.

    Args:
        users_PD: user vectors, already multiplied by the scale.
        items_ND: all item vectors.
        targets_P: rows of the next items.
        negatives_K: drawn rows, with repetitions; or every item once, with ``log_expected_N`` = 0, which gives the
            full softmax exactly.
        log_expected_N: log of the expected number of draws of each item, log(K q_j).
        seen_S2: pairs of a position and a row that is no negative there.
    """
    positive_P1 = (users_PD * items_ND[targets_P]).sum(-1, keepdim=True)
    logits_PK = users_PD @ items_ND[negatives_K].T - log_expected_N[negatives_K]
    logits_PK = logits_PK.masked_fill(negatives_K[None, :] == targets_P[:, None], -torch.inf)
    if seen_S2 is not None:
        rows_U, places_K = negatives_K.unique(return_inverse=True)
        positions_S, columns_S = among(seen_S2, rows_U).unbind(1)
        seen_PU = torch.zeros(len(users_PD), len(rows_U), dtype=torch.bool, device=users_PD.device)
        seen_PU[positions_S, columns_S] = True
        logits_PK = logits_PK.masked_fill(seen_PU[:, places_K], -torch.inf)
    normalizer_P = torch.cat([positive_P1, logits_PK], dim=1).logsumexp(-1)
    loss: Tensor = (normalizer_P - positive_P1[:, 0]).sum()
    return loss
