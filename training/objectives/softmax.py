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
    users_PD: Tensor, items_ND: Tensor, targets_P: Tensor, *, label_smoothing: float = 0.0, chunk: int | None = None
) -> Tensor:
    """Sum over positions of ``-log softmax(users · items)[target]``.

    Args:
        users_PD: user vectors, already multiplied by the scale (1 / temperature).
        items_ND: all item vectors.
        targets_P: rows of the next items.
        label_smoothing: share of the target spread evenly over the catalog.
        chunk: items a block; None decides by size and uses one block where the logits fit ``CHUNK_ELEMENTS``.
            Blocks are recomputed in the backward pass, so memory grows with P * chunk rather than P * N.
    """
    size = items_ND.shape[0]
    if chunk is None:
        chunk = max(1, CHUNK_ELEMENTS // max(1, users_PD.shape[0]))
    if chunk >= size:
        return F.cross_entropy(users_PD @ items_ND.T, targets_P, reduction="sum", label_smoothing=label_smoothing)
    normalizer_P: Tensor = _ChunkedLogSumExp.apply(users_PD, items_ND, chunk)  # type: ignore[no-untyped-call]
    positive_P = (users_PD * items_ND[targets_P]).sum(-1)
    loss: Tensor = (normalizer_P - positive_P).sum()
    if label_smoothing:
        mean_P = users_PD @ items_ND.mean(0)
        loss = (1 - label_smoothing) * loss + label_smoothing * (normalizer_P - mean_P).sum()
    return loss


class _ChunkedLogSumExp(torch.autograd.Function):
    """``logsumexp(users @ items.T, -1)`` with a running maximum over blocks; the backward recomputes each block."""

    @staticmethod
    def forward(ctx: Any, users_PD: Tensor, items_ND: Tensor, chunk: int) -> Tensor:
        total_P = users_PD.new_full((users_PD.shape[0],), -torch.inf)
        for block_CD in items_ND.split(chunk):
            total_P = torch.logaddexp(total_P, (users_PD @ block_CD.T).logsumexp(-1))
        ctx.save_for_backward(users_PD, items_ND, total_P)
        ctx.chunk = chunk
        return total_P

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (gradient_P,) = gradients
        users_PD, items_ND, total_P = ctx.saved_tensors
        users_gradient = torch.zeros_like(users_PD)
        items_gradient = torch.empty_like(items_ND) if ctx.needs_input_grad[1] else None  # none of a frozen head
        start = 0
        for block_CD in items_ND.split(ctx.chunk):
            weights_PC = (users_PD @ block_CD.T - total_P[:, None]).exp() * gradient_P[:, None]
            users_gradient += weights_PC @ block_CD
            if items_gradient is not None:
                items_gradient[start : start + len(block_CD)] = weights_PC.T @ users_PD
            start += len(block_CD)
        return users_gradient, items_gradient, None


def sampled_softmax(
    users_PD: Tensor,
    items_ND: Tensor,
    targets_P: Tensor,
    negatives_K: Tensor,
    log_expected_N: Tensor,
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
    """
    positive_P1 = (users_PD * items_ND[targets_P]).sum(-1, keepdim=True)
    logits_PK = users_PD @ items_ND[negatives_K].T - log_expected_N[negatives_K]
    logits_PK = logits_PK.masked_fill(negatives_K[None, :] == targets_P[:, None], -torch.inf)
    normalizer_P = torch.cat([positive_P1, logits_PK], dim=1).logsumexp(-1)
    loss: Tensor = (normalizer_P - positive_P1[:, 0]).sum()
    return loss
