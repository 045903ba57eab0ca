"""Item vectors of earlier batches as further negatives, from a copy of the encoder that follows it slowly (MoCo).

He et al. 2020, as Contriever uses it (Izacard et al. 2022, section 3.2): vectors that stay in a queue for many steps
fit together only if what made them hardly changes. The copy's weights are ``m`` times their own and ``1 - m`` times the
encoder's after every step.

Shape legend: Q vectors in the queue, P targets of a batch, U distinct items of it, D item dimension.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from modeling.encoder.build import trainable
from modeling.encoder.user_encoder import UserEncoder


class MomentumQueue:
    """The copy and the queue.

    Args:
        encoder: which encodes items from their titles.
        size: most vectors that are kept; the oldest make room.
        momentum: m.
    """

    def __init__(self, encoder: UserEncoder, size: int, momentum: float) -> None:
        self._encoder, self._size, self._momentum = encoder, size, momentum
        self._current = trainable(encoder)
        self._copy = {name: weight.detach().clone() for name, weight in self._current.items()}
        self._keys_QD = torch.zeros(0, encoder.items.dim)
        self._rows_Q = torch.zeros(0, dtype=torch.long)

    @property
    def held(self) -> tuple[Tensor, Tensor]:
        """Vectors [Q, D] and rows [Q], oldest first, on the device of the encoder."""
        device = self._encoder.device
        return self._keys_QD.to(device), self._rows_Q.to(device)

    @torch.no_grad()
    def encode(self, targets_P: Tensor) -> Tensor:
        """Vectors [P, D] of a batch's targets by the copy, which is moved first; before any pass with gradients."""
        for name, weight in self._current.items():
            self._copy[name] = self._copy[name].to(weight.device).lerp_(weight, 1 - self._momentum)
        rows_U, places_P = targets_P.unique(return_inverse=True)
        with self._copied():
            return self._encoder.encode_items(rows_U.tolist()).float()[places_P]

    def add(self, keys_PD: Tensor, targets_P: Tensor) -> None:
        """Put vectors at the end, once the loss of their batch is known."""
        held_QD, held_Q = self.held
        self._keys_QD = torch.cat([held_QD, keys_PD])[-self._size :]
        self._rows_Q = torch.cat([held_Q, targets_P])[-self._size :]

    def state(self) -> dict[str, Tensor]:
        """State for resuming a run."""
        return {
            "keys": self._keys_QD,
            "rows": self._rows_Q,
            **{f"copy.{name}": copy for name, copy in self._copy.items()},
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state`."""
        self._keys_QD, self._rows_Q = state["keys"], state["rows"]
        self._copy = {name: state[f"copy.{name}"] for name in self._current}

    @contextlib.contextmanager
    def _copied(self) -> Iterator[None]:
        own = {name: weight.detach().clone() for name, weight in self._current.items()}
        self._put(self._copy)
        try:
            yield
        finally:
            self._put(own)

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in self._current.items():
            weight.copy_(weights[name])
