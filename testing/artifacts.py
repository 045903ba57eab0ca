"""Small artifacts with random weights, written as training writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from index import Catalog, FlatIndex, save_index
from modeling.artifact.atomic import replaced_folder
from modeling.encoder.build import Model, build_model
from modeling.methods.dense import GoldenCase, write_golden, write_manifest, write_model
from modeling.spec import BackboneSpec, HistorySpec, ItemsSpec, ModelSpec, ProjectorSpec
from testing import models
from testing.models import TITLES

ITEMS, DIM, LIMIT = 500, 32, 20
SPEC = ModelSpec(
    history=HistorySpec(form="ids", limit=LIMIT),
    backbone=BackboneSpec(width=DIM, depth=2, heads=2),
    projector=ProjectorSpec(kind="identity"),
    items=ItemsSpec(tower="id", dim=DIM),
)
HISTORIES = [[3], [0, 5, 7], [8, 8, 10, 1]]  # golden ones of `write_text_artifact`


def write_id_artifact(folder: Path, name: str) -> Path:
    """Write a dense artifact that reads ids; returns its folder, `folder / name`."""
    torch.manual_seed(3)
    model = build_model(SPEC, catalog_size=ITEMS)
    encoder = model.encoder.eval()
    catalog = Catalog(
        item_ids=tuple(f"B{row:05d}'\"" for row in range(ITEMS)),
        titles=tuple(f"Thing {row}" for row in range(ITEMS)),
        categories=((),) * ITEMS,
        popularity=np.arange(ITEMS, dtype=np.int64),
        popularity_counted_on="train",
    )
    histories = [list(range(start, start + length)) for start, length in ((0, 3), (40, 30), (99, 1))]
    with replaced_folder(folder / name) as work:
        vectors_ND = write_model(model, work)
        catalog.write(work / "catalog.parquet")
        index = FlatIndex.build(vectors_ND)
        save_index(index, work / "index")
        users_BD = encoder.encode([encoder.prepare(history) for history in histories])
        _, rows_BK = index.search(users_BD, 10, exclude=[np.array(history) for history in histories])
        ids = catalog.item_ids
        cases = [
            GoldenCase(history=[ids[row] for row in history], vector=user.tolist(), top=[ids[row] for row in rows])
            for history, user, rows in zip(histories, users_BD, rows_BK, strict=True)
        ]
        write_golden(work, cases)
        write_manifest(
            work, model, name=name, recipe="sasrec", recipe_data={}, data="made up", data_sha256="0",
            split="leave-one-out", fitted_on="train", metrics={}, training={}, commit=None,
        )  # fmt: skip
    return folder / name


def write_text_artifact(model: Model, folder: Path, *, shuffled_popularity: bool = False) -> Path:
    """Write `model`, whose items are those of `testing.models`, as a dense artifact; returns `folder`."""
    encoder = model.encoder.eval()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    catalog = Catalog(
        item_ids=tuple(f"i{row}" for row in range(models.ITEMS)),
        titles=tuple(TITLES),
        categories=((),) * models.ITEMS,
        popularity=np.arange(models.ITEMS, dtype=np.int64)[:: -1 if shuffled_popularity else 1].copy(),
        popularity_counted_on="train",
    )
    with replaced_folder(folder) as work:
        vectors_ND = write_model(model, work)
        catalog.write(work / "catalog.parquet")
        index = FlatIndex.build(vectors_ND)
        save_index(index, work / "index")
        users_BD = encoder.encode([encoder.prepare(history) for history in HISTORIES])
        _, rows_BK = index.search(users_BD, 5, exclude=[np.array(history) for history in HISTORIES])
        ids = catalog.item_ids
        write_golden(work, [
            GoldenCase(history=[ids[row] for row in history], vector=user.tolist(), top=[ids[row] for row in rows])
            for history, user, rows in zip(HISTORIES, users_BD, rows_BK, strict=True)
        ])  # fmt: skip
        write_manifest(
            work, model, name=folder.name, recipe="anyo", recipe_data={}, data="made up", data_sha256="0",
            split="leave-one-out", fitted_on="train", metrics={}, training={}, commit=None,
        )  # fmt: skip
    return folder
