"""Prompts of several users as tensors of one length.

Shape legend: B users, T positions, R newest items, F free titles, C width of a title vector or of a condition.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from modeling.encoder.pooling import Spans


@dataclass(frozen=True)
class Batch:
    """Prompts as tensors, padded to one length.

    Attributes:
        kinds_BT, values_BT: what stands at a position, as in `Prompt`; kind 0 is padding.
        spans: where each prompt stands.
        mask_BT: 1 where a position is not padding. None where padding is on the right and attention is causal: no
            position can see what comes after it, so no mask is needed.
        positions_BT: numbers of positions in their prompts; None where padding is on the right.
        condition_BC: what requests bring for a gated adapter; None where they bring nothing.
        tokens: positions that are not padding.
    """

    kinds_BT: Tensor
    values_BT: Tensor
    spans: Spans
    recent_BR: Tensor
    free_FC: Tensor | None
    mask_BT: Tensor | None
    positions_BT: Tensor | None
    tokens: int
    condition_BC: Tensor | None = None

    @property
    def last_B(self) -> Tensor:
        """The last position of each prompt's last item."""
        return self.spans.last_P

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T), padding included."""
        return self.kinds_BT.shape[0], self.kinds_BT.shape[1]
