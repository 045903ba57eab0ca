"""Initial weights of an update: the weights of the parent, matched by item id, and a vector for every new item.

A new item starts with the vector of an item added to the served catalog: with ``items.cold='mapped'`` the vector that
the parent maps from its title, otherwise its title vector and the id vector of UNKNOWN. Items without titles start with
distinct random vectors that have the mean norm of the parent's vectors.

Shape legend: N items of the new catalog, R new items, D item dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from modeling.artifact.verified import Files
from modeling.encoder.build import Model, Sources
from modeling.encoder.item_tower import ItemTower, Whitening
from modeling.encoder.title_check import read_map
from modeling.methods.dense_files import Head, input_maps, sources_of
from modeling.methods.dense_tables import load_into
from training.updating.parent import Parent

ITEMS, TEXT = "parts/items.safetensors", "parts/text.safetensors"
TABLES = ("ids.weight", "outputs.weight", "biases_N")
REMADE = ("encoded_ND", "chosen_N")
"""Made anew by the training."""


@dataclass(frozen=True)
class WarmStart:
    """The parent's weights.

    Attributes:
        parent: the artifact.
        rows_N: its row of each item of the new catalog; -1: the item is new.
    """

    parent: Parent
    rows_N: NDArray[np.int64]

    @property
    def adapter(self) -> Files:
        """Files of the parent's adapter."""
        return self.parent.files.below("adapter")

    def sources(self, made: Sources) -> Sources:
        """Backbones that the parent holds; ``made`` says where vectors of titles are kept."""
        found = sources_of(self.parent.files, self.parent.record, made)
        return Sources(
            found.backbone,
            found.text_backbone,
            backbone_reads_titles=found.backbone_reads_titles,
            vectors=made.vectors,
            download=found.download,
        )

    def whitening(self) -> Whitening | None:
        """Whitening of the parent's title vectors, which its weights require; None without title vectors."""
        if not self.parent.record.text_dim:
            return None
        arrays = self.parent.files.arrays(TEXT)
        return Whitening(arrays["mean"], read_map(arrays["map"], self.parent.files.name)[0])

    def apply(self, model: Model, *, ids_given: bool) -> None:
        """Put the parent's weights into a model that was built with its adapter.

        Args:
            model: of the parent's description over the new catalog.
            ids_given: whether new rows of the id table hold what another model knows of them.
        """
        encoder, spec, files = model.encoder, model.spec, self.parent.files
        if spec.backbone.own and spec.has_network:
            load_into(encoder.backbone, files, "backbone/model.safetensors")
        if len(inputs := input_maps(encoder)):
            load_into(inputs, files, "parts/inputs.safetensors")
        load_into(Head(encoder), files, "projector.safetensors")
        start_items(encoder.items, files.tensors(ITEMS), self.rows_N, ids_given=ids_given)


@torch.no_grad()
def start_items(tower: ItemTower, saved: dict[str, Tensor], rows_N: NDArray[np.int64], *, ids_given: bool) -> None:
    """Fill an item tower from a parent's.

    Args:
        tower: as it is built for a fresh training, title vectors included.
        saved: the parent's ``state_dict``.
        rows_N: the parent's row of each item, -1 for new ones.
        ids_given: whether new rows of the id table stay as they are; where it is frozen, all of them do.
    """
    own = tower.state_dict()  # shares the memory of the tower
    known = torch.from_numpy(np.flatnonzero(rows_N >= 0))
    new = torch.from_numpy(np.flatnonzero(rows_N < 0))
    for name, weight in saved.items():
        if name in REMADE or (name == "ids.weight" and tower.spec.frozen):
            continue
        if name not in TABLES or len(own[name]) == 1:
            own[name].copy_(weight)
            continue
        table = own[name]
        if name == "biases_N" or (tower.text_map is not None and not (name == "ids.weight" and ids_given)):
            table[new] = weight[-1].clone()
        elif not (name == "ids.weight" and ids_given):
            table[new] = F.normalize(table[new], dim=-1) * weight[:-1].norm(dim=-1).mean()
        table[known] = weight[torch.from_numpy(rows_N[rows_N >= 0])]
        table[-1] = weight[-1]
    if tower.spec.cold == "mapped" and float(tower.cold_length) > 0 and len(new):
        _start_mapped(tower, known, new)


def _start_mapped(tower: ItemTower, known: Tensor, new: Tensor) -> None:
    """Rows of the id table with which new items stand where the parent's map puts their titles."""
    assert tower.text_map is not None
    length = tower.table()[known].norm(dim=-1).mean()
    text_RC = tower.text_NC[new]
    aim_RD = F.normalize(text_RC @ tower.cold_map_CD + tower.cold_mean_D, dim=-1) * length
    tower.scored.weight[new] = aim_RD - tower.text_map(text_RC)
