"""Small artifacts with random weights, written as training writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from index import Catalog, FlatIndex, save_index
from index.base import StoredIndex
from modeling.artifact.atomic import replaced_folder
from modeling.encoder.build import Model, build_model
from modeling.encoder.user_encoder import read_history
from modeling.generation.api import ListQuery
from modeling.methods import Loaded
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
    catalog = Catalog(
        item_ids=tuple(f"B{row:05d}'\"" for row in range(ITEMS)),
        titles=tuple(f"Thing {row}" for row in range(ITEMS)),
        categories=((),) * ITEMS,
        popularity=np.arange(ITEMS, dtype=np.int64),
        popularity_counted_on="train",
    )
    histories = [list(range(start, start + length)) for start, length in ((0, 3), (40, 30), (99, 1))]
    return write_dense_artifact(model, folder / name, catalog, histories, recipe="sasrec", k=10)


def write_text_artifact(model: Model, folder: Path, *, shuffled_popularity: bool = False) -> Path:
    """Write `model`, whose items are those of `testing.models`, as a dense artifact; returns `folder`."""
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    catalog = Catalog(
        item_ids=tuple(f"i{row}" for row in range(models.ITEMS)),
        titles=tuple(TITLES),
        categories=((),) * models.ITEMS,
        popularity=np.arange(models.ITEMS, dtype=np.int64)[:: -1 if shuffled_popularity else 1].copy(),
        popularity_counted_on="train",
    )
    return write_dense_artifact(model, folder, catalog, HISTORIES)


def write_dense_artifact(
    model: Model,
    folder: Path,
    catalog: Catalog,
    histories: Sequence[Sequence[int]],
    *,
    recipe: str = "anyo",
    k: int = 5,
    make_index: Callable[[Any], StoredIndex] = FlatIndex.build,
) -> Path:
    """Write `model` as a dense artifact with an index of its item vectors and golden lists of `k` items; returns
    `folder`."""
    encoder, ids = model.encoder.eval(), catalog.item_ids
    with replaced_folder(folder) as work:
        index = make_index(write_model(model, work))
        save_index(index, work / "index")
        catalog.write(work / "catalog.parquet")
        users_BD = encoder.encode([encoder.prepare(history) for history in histories])
        _, rows_BK = index.search(users_BD, k, exclude=[np.array(history) for history in histories])
        write_golden(work, [
            GoldenCase(history=[ids[row] for row in history], vector=user.tolist(), top=[ids[row] for row in rows])
            for history, user, rows in zip(histories, users_BD, rows_BK, strict=True)
        ])  # fmt: skip
        write_manifest(
            work, model, name=folder.name, recipe=recipe, recipe_data={}, data="made up", data_sha256="0",
            split="leave-one-out", fitted_on="train", metrics={}, training={}, commit=None,
        )  # fmt: skip
    return folder


def assert_golden_lists(artifact: Loaded[Any], dataset: Any) -> None:
    """Assert that a loaded list method reproduces the texts and lists of its golden histories."""
    model = artifact.model
    for case in artifact.golden:
        asked = case.asked(dataset.row_of)
        seen = np.array([item for item in asked if isinstance(item, int)], np.int64)
        (written,) = model.write([model.prepare(read_history(asked, model.read_titles))], [ListQuery(10, seen)])
        assert [text.text for text in written.generated] == case.texts
        assert [dataset.item_ids[row] for row in written.rows_K] == case.top
        assert not set(seen.tolist()) & set(written.rows_K.tolist())
