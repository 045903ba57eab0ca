"""The item tower: one vector an item, from a trained id table, a linear map of whitened title vectors, or both.

Title vectors are read once, offline, by a text backbone (mean of its last states, length one) and whitened: raw
language-model vectors share one large common direction that would dominate every inner product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from modeling.spec import ItemsSpec


@dataclass(frozen=True)
class Whitening:
    """An affine map to zero mean and equal variance, fitted on the catalog's titles: ``(x - mean) @ map``.

    The result has mean squared length one, so that text and id vectors start at comparable sizes.
    """

    mean_C: NDArray[np.float32]
    map_CD: NDArray[np.float32]

    @classmethod
    def fit(cls, vectors_NC: NDArray[np.float32], dim: int) -> Whitening:
        """PCA whitening onto the ``dim`` strongest directions (fewer where the catalog has lower rank)."""
        mean = vectors_NC.mean(axis=0, dtype=np.float64)
        _, singular, directions = np.linalg.svd(vectors_NC.astype(np.float64) - mean, full_matrices=False)
        keep = max(1, min(dim, int((singular > 1e-3 * singular[0]).sum())))
        scale = np.sqrt(len(vectors_NC)) / singular[:keep] / math.sqrt(keep)
        return cls(mean.astype(np.float32), (directions[:keep].T * scale).astype(np.float32))

    def __call__(self, vectors_NC: NDArray[np.float32]) -> NDArray[np.float32]:
        white: NDArray[np.float32] = ((vectors_NC - self.mean_C) @ self.map_CD).astype(np.float32)
        return white


class TitleReader:
    """Reads titles into unit vectors [N, C]: mean over the tokens of the last states of a text backbone.

    Args:
        model: a Hugging Face body; an encoder in its native (bidirectional) mode, or a causal decoder.
        tokenize: text to token ids without special tokens.
        wrap: special tokens the model expects around a text (before, after).
        limit: tokens of a title that are read.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenize: Callable[[Sequence[str]], list[list[int]]],
        *,
        wrap: tuple[Sequence[int], Sequence[int]] = ((), ()),
        limit: int = 48,
    ) -> None:
        self._model = model.eval()
        self._tokenize = tokenize
        self._before, self._after = list(wrap[0]), list(wrap[1])
        self._limit = limit

    @property
    def model(self) -> nn.Module:
        """The text backbone."""
        return self._model

    @torch.inference_mode()
    def __call__(
        self, titles: Sequence[str], *, batch: int = 64, progress: Callable[[int], object] = lambda done: None
    ) -> NDArray[np.float32]:
        """Vectors of ``titles`` in their order; near-equal lengths share a batch."""
        ids = [self._before + piece[: self._limit] + self._after for piece in self._tokenize(titles)]
        ids = [piece or [0] for piece in ids]
        order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
        hidden = int(cast(Any, self._model.config).hidden_size)
        out = np.zeros((len(ids), hidden), np.float32)
        device = next(self._model.parameters()).device
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            width = max(len(ids[n]) for n in rows)
            tokens_BT = torch.zeros(len(rows), width, dtype=torch.long, device=device)
            mask_BT = torch.zeros(len(rows), width, dtype=torch.long, device=device)
            for place, n in enumerate(rows):
                tokens_BT[place, : len(ids[n])] = torch.as_tensor(ids[n])
                mask_BT[place, : len(ids[n])] = 1
            states_BTH = self._model(input_ids=tokens_BT, attention_mask=mask_BT).last_hidden_state.float()
            weights = mask_BT[..., None].float()
            mean_BH = (states_BTH * weights).sum(1) / weights.sum(1)
            out[rows] = F.normalize(mean_BH, dim=-1).cpu().numpy()
            progress(len(rows))
        return out


class ItemTower(nn.Module):
    """Item vectors [N, D] and the vectors a history shows.

    Args:
        spec: which tower, how wide.
        catalog_size: N. The id table has one more row, UNKNOWN, for items and titles without a trained id. Items that
            the user encoder encodes have no id table: their vectors, as last encoded, stand in ``encoded_ND``.
        text_dim: C, width of the whitened title vectors; 0 where the model uses none.
    """

    text_NC: Tensor
    encoded_ND: Tensor | None
    _frozen_ND: Tensor | None

    def __init__(self, spec: ItemsSpec, *, catalog_size: int, text_dim: int = 0) -> None:
        super().__init__()
        with_text = spec.tower in ("text", "both")
        if with_text and not text_dim:
            raise ValueError(f"items.tower={spec.tower!r} needs title vectors, and none were given")
        self.spec = spec
        self.size = catalog_size
        encoded = spec.tower == "encoder"
        self.ids = nn.Embedding(1 if encoded else catalog_size + 1, spec.dim)
        self.ids.requires_grad_(not encoded)
        scale = 0.25 if with_text else 1.0
        nn.init.normal_(self.ids.weight, std=scale / math.sqrt(spec.dim))
        self.text_map = nn.Linear(text_dim, spec.dim, bias=False) if with_text else None
        if self.text_map is not None:
            nn.init.normal_(self.text_map.weight, std=1 / math.sqrt(spec.dim))
        self.register_buffer("text_NC", torch.zeros(catalog_size + 1, text_dim), persistent=False)
        self.register_buffer("encoded_ND", torch.zeros(catalog_size + 1, spec.dim) if encoded else None)
        self.register_buffer("_frozen_ND", None, persistent=False)

    def set_text(self, vectors_NC: NDArray[np.float32]) -> None:
        """Give the whitened title vectors of the catalog, in row order; UNKNOWN has a zero vector.

        Raises:
            ValueError: not one vector of the right width per item.
        """
        expected = (self.size, self.text_NC.shape[1])
        if vectors_NC.shape != expected:
            raise ValueError(f"title vectors have shape {vectors_NC.shape}, expected {expected}")
        self.text_NC[: self.size] = torch.as_tensor(vectors_NC, device=self.text_NC.device)

    @torch.no_grad()
    def set_encoded(self, rows: Sequence[int], vectors_RD: Tensor) -> None:
        """Give vectors of items that the user encoder has encoded; row N is UNKNOWN's."""
        assert self.encoded_ND is not None, "only items.tower='encoder' has encoded items"
        self.encoded_ND[torch.as_tensor(rows, device=self.encoded_ND.device)] = vectors_RD.detach()

    def table(self, nameless_N: Tensor | None = None) -> Tensor:
        """Vectors of all items and of UNKNOWN, [N + 1, D], as trained (not normalised).

        Args:
            nameless_N: which of them have the id of UNKNOWN this time; None: as they are.
        """
        if self._frozen_ND is not None:
            return self._frozen_ND
        if self.encoded_ND is not None:
            return self.encoded_ND
        ids_ND = self.ids.weight
        if nameless_N is not None:
            ids_ND = torch.where(nameless_N[:, None], ids_ND[-1], ids_ND)
        return self._combine(self.text_NC, ids_ND)

    def freeze(self) -> None:
        """Compute the table once and keep it: weights and title vectors no longer change (serving)."""
        with torch.no_grad():
            self._frozen_ND = self.table().detach().clone()

    def _combine(self, text_NC: Tensor, ids_ND: Tensor) -> Tensor:
        if self.text_map is None:
            return ids_ND
        text_ND: Tensor = self.text_map(text_NC)
        return text_ND if self.spec.tower == "text" else text_ND + ids_ND

    def vectors(self) -> Tensor:
        """What the index holds, [N, D]: normalised where the recipe says so."""
        return self.finish(self.table()[: self.size])

    def finish(self, vectors_ND: Tensor) -> Tensor:
        """Normalise where the recipe scores by cosine."""
        return F.normalize(vectors_ND, dim=-1) if self.spec.normalize else vectors_ND

    def cold_table(self, text_FC: Tensor) -> Tensor:
        """Table rows [F, D] of items known by their title alone: whitened title vectors, UNKNOWN as the id.

        Raises:
            ValueError: an id tower has no vector for an item it was not trained on.
        """
        if self.text_map is None:
            raise ValueError("an id tower has no vector for an item it was not trained on")
        return self._combine(text_FC, self.ids.weight[self.size].expand(len(text_FC), -1))
