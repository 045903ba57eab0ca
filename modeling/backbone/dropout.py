"""Dropout that costs a processor little.

`torch.nn.functional.dropout` draws a number of its own for every element, one after the other: in a small network that
is a fifth of a training step. Here four elements share a 64-bit draw, and 16 bits decide on each, so a share is
kept to within 2 ** -17. On other devices it is torch's own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 1 << 16
LOWEST, HIGHEST = -(1 << 63), (1 << 63) - 1


class Dropout(nn.Module):
    """`torch.nn.Dropout`, by `drop`."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, states: Tensor) -> Tensor:
        """States of any shape."""
        return drop(states, self.share, self.training)


def drop(states: Tensor, share: float, training: bool) -> Tensor:
    """Zero for ``share`` of the elements while training, the others scaled up so that the mean stays."""
    if not training or not share:
        return states
    if states.device.type != "cpu":
        return F.dropout(states, share, training)
    kept: Tensor = _Drop.apply(states, share)  # type: ignore[no-untyped-call]
    return kept


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, share: float) -> Tensor:
        level = min(round(share * LEVELS), LEVELS - 1)
        draws = torch.empty(-(-states.numel() // 4), dtype=torch.int64).random_(LOWEST, HIGHEST)
        bits = draws.view(torch.int16)[: states.numel()].view(states.shape)
        factors = (bits >= level - LEVELS // 2).to(states.dtype).mul_(1 / (1 - level / LEVELS))
        ctx.save_for_backward(factors)
        return states * factors

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (factors,) = ctx.saved_tensors
        return gradients[0] * factors, None
