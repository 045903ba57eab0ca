"""The decaying pull towards the id model's space (A01: distillation of the item table, weight going to zero)."""

from __future__ import annotations

from torch import Tensor


def anchor_weight(start: float, progress: float, share: float) -> float:
    """Linear from ``start`` at the beginning to zero at ``share`` of the training; ``progress`` is in [0, 1]."""
    return start * max(0.0, 1.0 - progress / share)


def anchor_loss(table_ND: Tensor, anchor_ND: Tensor) -> Tensor:
    """Mean squared distance of the id table from the id model's, over items and dimensions."""
    return (table_ND - anchor_ND).square().mean()
