"""The state that a gated adapter reads: that of a frozen id model at a history's last item.

It is the sequence encoder of a recipe that was trained before, in the row order of the model that it gates. It sees
nothing but the items that stand in the prompt, and its weights are stored in the artifact. States of different users
share most of their direction, so that they are standardised by the mean and deviation of training histories.

Shape legend: B users, C width of the state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modeling.encoder.build import build_model
from modeling.encoder.prompt import Prompt
from modeling.encoder.user_encoder import UserEncoder
from modeling.spec import ModelSpec

FILE = "parts/history_state.safetensors"
BATCH, MOST = 256, 5000
"""Histories that are read at once, and for mean and deviation."""
SMALLEST = 1e-6


class HistoryState(nn.Module):
    """States [B, C] of histories; never trained, and always in evaluation mode.

    Args:
        spec: an id model's: a transformer of its own over an id table.
        catalog_size: N.
        empty_items: make the id table without memory, see `build_model`.

    Raises:
        ValueError: it is of another kind.
    """

    def __init__(self, spec: ModelSpec, catalog_size: int, *, empty_items: bool = False) -> None:
        super().__init__()
        if spec.history.form != "ids" or not spec.backbone.own or not spec.has_network:
            raise ValueError(
                "a gated adapter reads the state of an id model, history.form='ids' with backbone.source='none' (given "
                f"{spec.history.form!r} with {spec.backbone.source!r})"
            )
        self.spec, self.width = spec, spec.backbone.width
        self._catalog_size = catalog_size
        self._encoder: UserEncoder = build_model(spec, catalog_size=catalog_size, empty_items=empty_items).encoder
        self._scale = _Scale(self.width)
        self.requires_grad_(False).eval()

    @property
    def parts(self) -> nn.ModuleDict:
        """Stored record of it."""
        own = {"ids": self._encoder.items.ids, "backbone": self._encoder.backbone, "scale": self._scale}
        return nn.ModuleDict(own)

    @classmethod
    def of(
        cls, spec: ModelSpec, catalog_size: int, weights: Mapping[str, Tensor], histories: Sequence[NDArray[Any]]
    ) -> Self:
        """With ``weights`` of table and transformer by the names of `parts`, standardised on ``histories`` of rows."""
        made = cls(spec, catalog_size)
        made.parts.load_state_dict({**made._scale.state_dict(prefix="scale."), **weights})
        read = [np.asarray(rows) for rows in histories[:MOST] if len(rows)]
        states_BC = torch.cat([made._states(read[start : start + BATCH]) for start in range(0, len(read), BATCH)])
        made._scale.mean_C.copy_(states_BC.mean(0))
        made._scale.deviation_C.copy_(states_BC.std(0, correction=0).clamp(min=SMALLEST))
        return made

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: a gate must not change by chance."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, prompts: Sequence[Prompt]) -> Tensor:
        """States of the catalog items in prompts; that of the mean, zeros, where a history holds free titles alone.

        Args:
            prompts: of the gated model, whose items have ids.
        """
        found_BC = torch.zeros(len(prompts), self.width, device=self._encoder.device)
        histories = [prompt.values_T[prompt.boundaries_M] for prompt in prompts]
        histories = [rows[rows < self._catalog_size] for rows in histories]
        known = [number for number, rows in enumerate(histories) if len(rows)]
        if known:
            states_BC = self._scale(self._states([histories[number] for number in known]))
            found_BC[torch.from_numpy(np.asarray(known)).to(found_BC.device)] = states_BC
        return found_BC

    @torch.no_grad()
    def _states(self, histories: Sequence[NDArray[Any]]) -> Tensor:
        batch = self._encoder.collate([self._encoder.prepare(rows.tolist()) for rows in histories])
        states_BC: Tensor = self._encoder.pooling(self._encoder.hidden(batch), batch.spans)
        return states_BC.float()


class _Scale(nn.Module):
    """Mean and deviation of states."""

    mean_C: Tensor
    deviation_C: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean_C", torch.zeros(width))
        self.register_buffer("deviation_C", torch.ones(width))

    def forward(self, states_BC: Tensor) -> Tensor:
        return (states_BC - self.mean_C) / self.deviation_C
