"""A dense artifact inside another one, which scores all items for the method that holds it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modeling.artifact.folders import ArtifactError
from modeling.artifact.verified import Folder, files_of
from modeling.methods.dense import load_artifact

COLLABORATIVE = "parts/collaborative"
"""Folder of it inside the artifact."""


class CollaborativeModel(nn.Module):
    """Scores of all items under a dense artifact of the same catalog, its rows in the same order.

    Raises:
        ArtifactError: it cannot be loaded, or has another number of items.
    """

    vectors_ND: Tensor

    def __init__(self, folder: Folder, items: int) -> None:
        super().__init__()
        self.folder = folder
        self.encoder = load_artifact(folder).encoder
        with torch.inference_mode():
            vectors_ND = self.encoder.items.vectors().float().clone()
        if len(vectors_ND) != items:
            raise ArtifactError(f"{folder.name} scores {len(vectors_ND)} items, and the catalog has {items}")
        self.register_buffer("vectors_ND", vectors_ND, persistent=False)

    @torch.inference_mode()
    def forward(self, history: Sequence[int]) -> NDArray[np.float32]:
        """Scores [N] for a history of catalog rows, oldest first."""
        prompt = self.encoder.prepare(list(history)[-self.encoder.history_limit :])
        found: NDArray[np.float32] = (self.vectors_ND @ self.encoder(self.encoder.collate([prompt]))[0].float()).numpy()
        return found

    def copy_to(self, target: Path) -> None:
        """Copy its artifact to ``target / COLLABORATIVE``."""
        files = files_of(self.folder)
        for name in files.names():
            place = target / COLLABORATIVE / name
            place.parent.mkdir(parents=True, exist_ok=True)
            files.copy(name, place)
