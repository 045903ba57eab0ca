"""The state that a gated adapter reads: that of a frozen id model at a history's last item.

It is the sequence encoder of a recipe that was trained before, in the row order of the model that it gates. It sees
nothing but the items that stand in the prompt, and its weights are stored in the artifact.

Shape legend: B users, C width of the state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from modeling.encoder.build import build_model
from modeling.encoder.prompt import Prompt
from modeling.encoder.user_encoder import UserEncoder
from modeling.spec import ModelSpec

FILE = "parts/history_state.safetensors"


class HistoryState(nn.Module):
    """States [B, C] of histories; never trained, and always in evaluation mode.

    Args:
        spec: an id model's: a transformer of its own over an id table.
        catalog_size: N.

    Raises:
        ValueError: it is of another kind.
    """

    def __init__(self, spec: ModelSpec, catalog_size: int) -> None:
        super().__init__()
        if spec.history.form != "ids" or not spec.backbone.own or not spec.has_network:
            raise ValueError(
                "a gated adapter reads the state of an id model, history.form='ids' with backbone.source='none' (given "
                f"{spec.history.form!r} with {spec.backbone.source!r})"
            )
        self.spec, self.width = spec, spec.backbone.width
        self._catalog_size = catalog_size
        self._encoder: UserEncoder = build_model(spec, catalog_size=catalog_size).encoder
        self.requires_grad_(False).eval()

    @property
    def parts(self) -> nn.ModuleDict:
        """What is stored of it."""
        return nn.ModuleDict({"ids": self._encoder.items.ids, "backbone": self._encoder.backbone})

    @classmethod
    def of(cls, spec: ModelSpec, catalog_size: int, weights: Mapping[str, Tensor]) -> Self:
        """With ``weights`` by the names of `parts`."""
        made = cls(spec, catalog_size)
        made.parts.load_state_dict(dict(weights))
        return made

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: a gate must not change by chance."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, prompts: Sequence[Prompt]) -> Tensor:
        """States of the catalog items in prompts; zeros where a history holds free titles alone.

        Args:
            prompts: of the gated model, whose items have ids.
        """
        found_BC = torch.zeros(len(prompts), self.width, device=self._encoder.device)
        histories = [prompt.values_T[prompt.boundaries_M] for prompt in prompts]
        histories = [rows[rows < self._catalog_size] for rows in histories]
        known = [number for number, rows in enumerate(histories) if len(rows)]
        if known:
            own = [self._encoder.prepare(histories[number].tolist()) for number in known]
            batch = self._encoder.collate(own)
            states_BC = self._encoder.pooling(self._encoder.hidden(batch), batch.spans)
            found_BC[torch.from_numpy(np.asarray(known)).to(found_BC.device)] = states_BC.float()
        return found_BC
