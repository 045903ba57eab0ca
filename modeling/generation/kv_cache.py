"""KV cache of beam search: keys and values of a prompt, once, and of the tokens its beams have written.

Beams of one prompt read the same keys and values of it, so these are stored once for all of them (the usual way
repeats them for every beam and copies all of them at every step, whenever a beam takes another's place). What the
beams write is appended behind the prompt, one block of W entries a step, and never moved: which of the entries a beam
descends from is a mask. So a search is a walk down one growing tree (AtSpeed, ICLR 2025, verifies trees in this form).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer in a buffer made once, for ``capacity`` positions."""

    capacity = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the buffers, at the first update."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._buffers = [
            torch.empty(*states.shape[:-2], self.capacity, states.shape[-1], dtype=self.dtype, device=self.device)
            for states in (key_states, value_states)
        ]
        self._filled = 0
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append [B, heads, T, width] and return everything so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self._filled = self._filled, self._filled + key_states.shape[-2]
        self._buffers[0][..., start : self._filled, :] = key_states
        self._buffers[1][..., start : self._filled, :] = value_states
        return self._views()

    def preset(self, keys_1KTD: Tensor, values_1KTD: Tensor, rows: int) -> None:
        """Begin with the keys and values of a prefix that all ``rows`` share."""
        shape = (rows, -1, -1, -1)
        self.update(keys_1KTD.expand(*shape), values_1KTD.expand(*shape))

    def cut(self, positions: int) -> None:
        """Forget what came after so many positions; nothing where there are no more."""
        if self.is_initialized and positions < self._filled:
            self._filled = positions
            self._views()

    def keep_rows(self, rows_R: Tensor) -> None:
        """Keep only these rows of the batch."""
        self._buffers = [buffer.index_select(0, rows_R) for buffer in self._buffers]
        self._views()

    def get_seq_length(self) -> int:
        """Positions filled."""
        return self._filled if self.is_initialized else 0

    def _views(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (buffer[..., : self._filled, :] for buffer in self._buffers)
        return self.keys, self.values


def new_cache(layers: int, capacity: int) -> Cache:
    """An empty cache for ``layers`` layers of at most ``capacity`` positions."""
    made = [GrowingLayer() for _ in range(layers)]  # type: ignore[no-untyped-call]
    for layer in made:
        layer.capacity = capacity
    return Cache(layers=list(made))


class BeamCache:
    """Ancestry of beams: for every beam, which generated cache entries are on its path, bool [B, W, S]."""

    def __init__(self, rows: int, beams: int, device: torch.device) -> None:
        self.passed_BWS = torch.zeros(rows, beams, 0, dtype=torch.bool, device=device)
        self._new_11WW = torch.eye(beams, dtype=torch.bool, device=device)[None]

    def step(self, parents_BW: Tensor) -> None:
        """Copy the path of each beam's parent, and add the beam's new entry."""
        past_BWS = self.passed_BWS.gather(1, parents_BW[..., None].expand(-1, -1, self.passed_BWS.shape[-1]))
        new_BWW = self._new_11WW.expand(len(past_BWS), -1, -1)
        self.passed_BWS = torch.cat([past_BWS, new_BWW], dim=-1)

    def keep_rows(self, rows_R: Tensor) -> None:
        """Keep only these rows of the batch."""
        self.passed_BWS = self.passed_BWS.index_select(0, rows_R)
