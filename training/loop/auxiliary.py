"""Losses beside the objective of a dense recipe: over the same batch, and gone when the training is over."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn

from modeling.encoder.user_encoder import UserEncoder
from training.loop.examples import TrainingBatch
from training.objectives.base import ItemVectors


@dataclass(frozen=True)
class Step:
    """One training step after the pass over its batch. P positions with a target, H width of a state.

    Attributes:
        encoder: what is trained.
        batch: prompts and targets.
        states_PH: pooled states.
        users_PD: user vectors, multiplied by the scale (1 / temperature).
        items: vectors of items.
    """

    encoder: UserEncoder
    batch: TrainingBatch
    states_PH: Tensor
    users_PD: Tensor
    items: ItemVectors


class Auxiliary(nn.Module):
    """One loss. Its own parameters are trained at ``optimizer.rate``, and no artifact holds them."""

    def computing(self) -> AbstractContextManager[object]:
        """Around the pass over a batch and its losses."""
        return nullcontext()

    def forward(self, step: Step) -> Tensor:
        """The loss, summed over the targets of the batch."""
        raise NotImplementedError

    def close(self, encoder: UserEncoder) -> None:
        """The end of training: the encoder is as it came, apart from its weights."""
