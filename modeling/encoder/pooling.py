"""Pooling: from the states of all positions to one state a history.

A pooling is called with spans, which say for every wanted state where its history stands in the batch. So the same code
pools whole histories and, where attention is causal, every beginning of a history that ends in an item.

Shape legend: B rows, T positions, H width, P pooled states, K positions that are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from modeling.spec import PoolingSpec


@dataclass(frozen=True)
class Spans:
    """Positions of the histories of P pooled states in a batch [B, T]; positions are inclusive.

    Attributes:
        rows_P: rows of the batch.
        begin_P: the first position of the row that is not padding, that of the first special token.
        first_P: the first position of the first item, behind the instruction.
        last_P: the last position of the last item.
        end_P: the last position of the row that is not padding, that of the end token where there is one.
    """

    rows_P: Tensor
    begin_P: Tensor
    first_P: Tensor
    last_P: Tensor
    end_P: Tensor

    def at(self, rows_P: Tensor, last_P: Tensor) -> Spans:
        """Spans of beginnings of these histories, which must be those of whole rows.

        Args:
            rows_P: their rows.
            last_P: the last position of the last item of each; an end token is not behind it.
        """
        return Spans(rows_P, self.begin_P[rows_P], self.first_P[rows_P], last_P, last_P)


class Pooling(nn.Module):
    """States [B, T, H] to pooled states [P, H]; holds no weights.

    Attributes:
        every_boundary: whether a state can be had for every beginning of a history.
        last_position: whether the pooled state is that of the last item's last position.
        needs_end: whether an end token has to stand behind the history.
        needs_begin: whether a special token has to stand before it.
        needs_summary: whether the tokens of `modeling.encoder.summary_tokens` have to stand behind it.
    """

    every_boundary: ClassVar[bool] = True
    last_position: ClassVar[bool] = False
    needs_end: ClassVar[bool] = False
    needs_begin: ClassVar[bool] = False
    needs_summary: ClassVar[bool] = False

    def __init__(self, spec: PoolingSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, states_BTH: Tensor, spans: Spans) -> Tensor:
        """Pooled states [P, H], of the dtype of the states."""
        raise NotImplementedError


class LastPooling(Pooling):
    """The state of the last position of the last item."""

    last_position = True

    def forward(self, states_BTH: Tensor, spans: Spans) -> Tensor:
        return states_BTH[spans.rows_P, spans.last_P]


class EosPooling(Pooling):
    """The state of the end token."""

    every_boundary = False
    needs_end = True

    def forward(self, states_BTH: Tensor, spans: Spans) -> Tensor:
        return states_BTH[spans.rows_P, spans.end_P]


class ClsPooling(Pooling):
    """The state of the first token (BERT's [CLS])."""

    every_boundary = False
    needs_begin = True

    def forward(self, states_BTH: Tensor, spans: Spans) -> Tensor:
        return states_BTH[spans.rows_P, spans.begin_P]


class MeanPooling(Pooling):
    """Mean over the positions of the items."""

    def forward(self, states_BTH: Tensor, spans: Spans) -> Tensor:
        first_B = torch.zeros(len(states_BTH), dtype=torch.long, device=states_BTH.device)
        first_B[spans.rows_P] = spans.first_P
        number_BT = torch.arange(states_BTH.shape[1], device=states_BTH.device) - first_B[:, None] + 1
        weights_BT1 = self._weights(number_BT.clamp(min=0).float())[..., None]
        # padding on the left may hold anything, also what is no number
        weighted_BTH = torch.where(weights_BT1 > 0, states_BTH.float() * weights_BT1, 0.0)
        sums_PH = weighted_BTH.cumsum(1)[spans.rows_P, spans.last_P]
        totals_P1 = weights_BT1.cumsum(1)[spans.rows_P, spans.last_P]
        return (sums_PH / totals_P1).to(states_BTH.dtype)

    def _weights(self, number_BT: Tensor) -> Tensor:
        """Weights of positions by their number in the history, from 1; 0 stands before it."""
        return (number_BT > 0).float()


class WeightedMeanPooling(MeanPooling):
    """Mean with weights 1, 2, 3, …: under causal attention later positions have read more (Muennighoff 2022)."""

    def _weights(self, number_BT: Tensor) -> Tensor:
        return number_BT


class LastNPooling(Pooling):
    """Mean over the last positions of the items: at most ``count``, fewer where a history has fewer."""

    def forward(self, states_BTH: Tensor, spans: Spans) -> Tensor:
        back_K = torch.arange(self.spec.count, device=states_BTH.device)
        places_PK = spans.last_P[:, None] - back_K
        valid_PK1 = (places_PK >= spans.first_P[:, None])[..., None]
        states_PKH = states_BTH[spans.rows_P[:, None], places_PK.clamp(min=0)].float()
        sums_PH = torch.where(valid_PK1, states_PKH, 0.0).sum(1)
        return (sums_PH / valid_PK1.sum(1)).to(states_BTH.dtype)


class EndNPooling(Pooling):
    """Mean over the last ``count`` positions of the row, which hold tokens made for it (Li et al. 2024, Llama2Vec)."""

    every_boundary = False
    needs_summary = True

    def forward(self, states_BTH: Tensor, spans: Spans) -> Tensor:
        places_PK = spans.end_P[:, None] - torch.arange(self.spec.count, device=states_BTH.device)
        return states_BTH[spans.rows_P[:, None], places_PK].float().mean(1).to(states_BTH.dtype)


POOLINGS: dict[str, type[Pooling]] = {
    "last": LastPooling,
    "eos": EosPooling,
    "mean": MeanPooling,
    "weighted_mean": WeightedMeanPooling,
    "cls": ClsPooling,
    "last_n": LastNPooling,
    "end_n": EndNPooling,
}


def pooling_of(spec: PoolingSpec) -> Pooling:
    """The pooling that a model's description names."""
    return POOLINGS[spec.kind](spec)
