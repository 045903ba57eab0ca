"""The item tower: one vector an item, from a trained id table, a linear map of whitened title vectors, or both.

Title vectors are read once, offline, by a text backbone (`modeling.encoder.title_reader`) and whitened: raw
language-model vectors share one large common direction that would dominate every inner product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from modeling.encoder.projector import ItemMap
from modeling.spec import ItemsSpec

LARGEST_SCALE = 100.0


def scale_of(log_scale: Tensor) -> Tensor:
    """Factor of the scores in the softmax; a sharper one over cosines only overfits."""
    return log_scale.clamp(max=math.log(LARGEST_SCALE)).exp()


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


TABLES = ("ids.weight", "outputs.weight", "encoded_ND")
"""Tensors in the state of an `ItemTower` that have a row for every item. Each may be left on disk; ``text_NC`` too, and
then it has no row of UNKNOWN."""


def leave_on_disk(module: nn.Module, name: str, table: Tensor) -> None:
    """Let a module read a table that lies in a mapped file in the place of one of its parameters or buffers.

    It is none of them any more: neither counted as memory, moved, trained nor saved.

    Args:
        module: holds the tensor, itself or in a submodule.
        name: of the tensor, as in its state.
        table: of the same type; not to be written to.
    """
    inner, _, last = name.rpartition(".")
    owner = module.get_submodule(inner)
    delattr(owner, last)
    setattr(owner, last, table)


class ItemTower(nn.Module):
    """Item vectors [N, D] and the vectors a history shows.

    Args:
        spec: which tower, how wide.
        catalog_size: N. The id table has one more row, UNKNOWN, for items and titles without a trained id. Items that
            the user encoder encodes have no id table: their vectors, as last encoded, stand in ``encoded_ND``.
        text_dim: C, width of the whitened title vectors; 0 where the model uses none.
        hidden_size: H, of the backbone; only where a table has its width.
        identity: whether user vectors are states of the backbone, so that a second table has its width.
        shows_ids: whether histories show the id table; one that nobody reads is left out beside a second one.
        item_map: to the space in which items are compared; None: they are compared as they are.

    Attributes:
        id_dim, dim: width of the vectors that a history shows, and of those that are scored, a bias not counted.
    """

    text_NC: Tensor
    encoded_ND: Tensor | None
    _frozen_ND: Tensor | None
    chosen_N: Tensor | None
    cold_map_CD: Tensor
    cold_mean_D: Tensor
    cold_length: Tensor

    def __init__(
        self,
        spec: ItemsSpec,
        *,
        catalog_size: int,
        text_dim: int = 0,
        hidden_size: int = 0,
        identity: bool = False,
        shows_ids: bool = True,
        item_map: ItemMap | None = None,
    ) -> None:
        super().__init__()
        with_text = spec.tower in ("text", "both")
        if with_text and not text_dim:
            raise ValueError(f"items.tower={spec.tower!r} needs title vectors, and none were given")
        self.spec = spec
        self.size = catalog_size
        self.id_dim = hidden_size if spec.words else spec.dim
        own_dim = hidden_size if spec.untied and identity else spec.dim if spec.untied else self.id_dim
        self.item_map = item_map
        self.dim = own_dim if item_map is None else item_map.width
        encoded = spec.tower == "encoder"
        no_ids = encoded or (spec.untied and not shows_ids)
        scale = 0.25 if with_text else 1.0
        self.ids = nn.Embedding(1 if no_ids else catalog_size + 1, self.id_dim)
        unread = spec.tower == "text" and not shows_ids
        self.ids.requires_grad_(not (no_ids or unread or spec.frozen))
        nn.init.normal_(self.ids.weight, std=scale / math.sqrt(self.id_dim))
        self.outputs = nn.Embedding(catalog_size + 1, own_dim) if spec.untied else None
        if self.outputs is not None:
            nn.init.normal_(self.outputs.weight, std=scale / math.sqrt(own_dim))
            nn.init.zeros_(self.outputs.weight[catalog_size])  # UNKNOWN is never a target
        self.biases_N = nn.Parameter(torch.zeros(catalog_size + 1)) if spec.bias else None
        self.text_map = nn.Linear(text_dim, own_dim, bias=False) if with_text else None
        if self.text_map is not None:
            nn.init.normal_(self.text_map.weight, std=1 / math.sqrt(own_dim))
        self.register_buffer("text_NC", torch.zeros(catalog_size + 1, text_dim), persistent=False)
        self.register_buffer("encoded_ND", torch.zeros(catalog_size + 1, self.dim) if encoded else None)
        self.register_buffer("_frozen_ND", None, persistent=False)
        mapped = spec.cold == "mapped"
        self.register_buffer("chosen_N", torch.ones(catalog_size, dtype=torch.bool) if mapped else None)
        if mapped:
            self.register_buffer("cold_map_CD", torch.zeros(text_dim, spec.dim))
            self.register_buffer("cold_mean_D", torch.zeros(spec.dim))
            self.register_buffer("cold_length", torch.zeros(()))

    def set_text(self, vectors_NC: NDArray[np.float32]) -> None:
        """Give the whitened title vectors of the catalog, in row order; UNKNOWN has a zero vector.

        Raises:
            ValueError: not one vector of the right width per item.
        """
        expected = (self.size, self.text_NC.shape[1])
        if vectors_NC.shape != expected:
            raise ValueError(f"title vectors have shape {vectors_NC.shape}, expected {expected}")
        self.text_NC[: self.size] = torch.as_tensor(vectors_NC, device=self.text_NC.device)

    def text_rows(self, rows_S: Tensor, free_FC: Tensor | None = None) -> Tensor:
        """Whitened title vectors [S, C] of catalog rows, zeros for UNKNOWN (row N); row N + 1 + j is ``free_FC[j]``."""
        found_SC = self.text_NC[rows_S.clamp(max=len(self.text_NC) - 1)]
        if len(self.text_NC) == self.size:  # a table on disk, without a row of UNKNOWN
            found_SC = found_SC.masked_fill((rows_S >= self.size)[..., None], 0.0)
        if free_FC is not None:
            places_S = rows_S > self.size
            found_SC[places_S] = free_FC.to(found_SC)[rows_S[places_S] - self.size - 1]
        return found_SC

    @torch.no_grad()
    def set_encoded(self, rows: Sequence[int], vectors_RD: Tensor) -> None:
        """Give vectors of items that the user encoder has encoded; row N is UNKNOWN's."""
        assert self.encoded_ND is not None, "only items.tower='encoder' has encoded items"
        self.encoded_ND[torch.as_tensor(rows, device=self.encoded_ND.device)] = vectors_RD.detach()

    @torch.no_grad()
    def start_words(self, words: nn.Embedding, tokens_N: Sequence[Sequence[int]]) -> None:
        """Start items at the mean of their titles' words; UNKNOWN, and titles without a word, at the mean of all."""
        known = [row for row, tokens in enumerate(tokens_N) if tokens]
        for row in known:
            self.ids.weight[row] = words.weight[torch.tensor(tokens_N[row])].float().mean(0)
        rest_N = torch.ones(self.size + 1, dtype=torch.bool)
        rest_N[known] = False
        self.ids.weight[rest_N] = self.ids.weight[known].mean(0) if known else words.weight.float().mean(0)

    def table(self, nameless_N: Tensor | None = None) -> Tensor:
        """Vectors of all items and of UNKNOWN, [N + 1, D], as trained (not normalised).

        Args:
            nameless_N: which of them have the id of UNKNOWN this time; None: as they are.
        """
        if self._frozen_ND is not None:
            return self._frozen_ND
        if self.encoded_ND is not None:
            return self.encoded_ND
        if len(self.text_NC) == self.size:
            return self.rows(torch.arange(self.size + 1))
        ids_ND = self.scored.weight
        if nameless_N is not None:
            ids_ND = torch.where(nameless_N[:, None], ids_ND[-1], ids_ND)
        return self._combine(self.text_NC, ids_ND)

    def rows(self, rows_R: Tensor, free_FC: Tensor | None = None) -> Tensor:
        """Rows [..., D] of `table`, computed for these items alone unless the table is frozen.

        Args:
            rows_R: of any shape.
            free_FC: title vectors outside the catalog: row N + 1 + j is that of the j-th, see `cold_table`.
        """
        known_R = rows_R.clamp(max=self.size)
        whole_ND = self._frozen_ND if self._frozen_ND is not None else self.encoded_ND
        if whole_ND is not None:
            found_RD = whole_ND[known_R]
        else:
            text_RC = None if self.text_map is None else self.text_rows(known_R)
            found_RD = self._combine(text_RC, self.scored(known_R))
        if free_FC is not None:
            places_R = rows_R > self.size
            found_RD[places_R] = self.cold_table(free_FC)[rows_R[places_R] - self.size - 1]
        return found_RD

    @property
    def scored(self) -> nn.Embedding:
        """The id table that items are scored by."""
        return self.ids if self.outputs is None else self.outputs

    @property
    def width(self) -> int:
        """D, of the vectors that are searched."""
        return self.dim + (self.biases_N is not None)

    @torch.no_grad()
    def forget(self, rows_N: Tensor) -> None:
        """Give items (a mask over the catalog) what UNKNOWN has, in every table."""
        tables = [self.ids.weight, self.scored.weight, *([] if self.biases_N is None else [self.biases_N])]
        for table in tables:
            if len(table) > self.size:
                table[:-1][rows_N] = table[-1].clone()

    def freeze(self) -> None:
        """Compute the table once and keep it: weights and title vectors no longer change (serving on a GPU)."""
        with torch.no_grad():
            self._frozen_ND = self.table().detach().clone()

    def _combine(self, text_NC: Tensor | None, ids_ND: Tensor) -> Tensor:
        found_ND = ids_ND
        if self.text_map is not None:
            assert text_NC is not None, "a text tower has title vectors"
            text_ND: Tensor = self.text_map(text_NC)
            found_ND = text_ND if self.spec.tower == "text" else text_ND + ids_ND
        return found_ND if self.item_map is None else self.item_map(found_ND)

    def vectors(self, rows_R: Tensor | None = None) -> Tensor:
        """Vectors for the index, [N, D], or of some catalog rows, [R, D]: normalised where the recipe says so; items
        without interactions as in `cold_vectors`."""
        table_RD = self.table()[: self.size] if rows_R is None else self.rows(rows_R)
        rows: Tensor | slice = slice(self.size) if rows_R is None else rows_R
        vectors_RD = self.with_bias(self.finish(table_RD), rows)
        if self.chosen_N is None or bool(self.chosen_N[rows].all()):
            return vectors_RD
        cold_RD = self.cold_vectors(self.text_NC[rows])
        return torch.where(self.chosen_N[rows][:, None], vectors_RD, cold_RD)

    def cold_vectors(self, text_FC: Tensor) -> Tensor:
        """Vectors [F, D] to be searched, of items known by their whitened title vectors alone.

        Raises:
            ValueError: an id tower has no vector for an item it was not trained on.
        """
        if self.spec.cold == "title":
            return self.with_bias(self.finish(self.cold_table(text_FC)), [self.size] * len(text_FC))
        return F.normalize(text_FC @ self.cold_map_CD + self.cold_mean_D, dim=-1) * self.cold_length

    @torch.no_grad()
    def set_cold(self, chosen_N: Tensor, map_CD: Tensor, mean_D: Tensor, length: float) -> None:
        """Give the map from titles to vectors.

        Args:
            chosen_N: which items were chosen in training; the vectors of the others are mapped.
            map_CD, mean_D: the map, ``text @ map + mean``.
            length: of the vectors it makes, where a chosen item has 1 (`normalize`).
        """
        assert self.chosen_N is not None, "only items.cold='mapped' has a map"
        self.chosen_N.copy_(chosen_N)
        self.cold_map_CD.copy_(map_CD)
        self.cold_mean_D.copy_(mean_D)
        self.cold_length.fill_(length)

    def with_bias(self, vectors_RD: Tensor, rows_R: Tensor | slice | list[int]) -> Tensor:
        """Finished vectors of items as they are searched: with the bias of each, if there is one, as last element."""
        if self.biases_N is None:
            return vectors_RD
        return torch.cat([vectors_RD, self.biases_N[rows_R, None].to(vectors_RD.dtype)], -1)

    def as_query(self, vectors_PD: Tensor, log_scale: Tensor) -> Tensor:
        """User vectors as they search: finished; beside biases with 1 / scale, so that ``scale * query · item`` is
        ``scale * user · vector + bias``, the logit of the softmax."""
        found_PD = self.finish(vectors_PD)
        if self.biases_N is None:
            return found_PD
        return torch.cat([found_PD, (1 / scale_of(log_scale)).expand(len(found_PD), 1).to(found_PD.dtype)], -1)

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
        return self._combine(text_FC, self.scored.weight[self.size].expand(len(text_FC), -1))
