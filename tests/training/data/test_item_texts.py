"""Texts of items with brand, categories and price: read as the template says, kept apart, and read again at loading."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from index import Catalog
from modeling.artifact.manifest import ArtifactError
from modeling.backbone.loading import BackboneError
from modeling.encoder.build import Sources, build_model, title_reader
from modeling.methods import load
from modeling.methods.dense import DenseModel, check_golden, load_artifact
from testing.datasets import QUIET, write_dataset
from testing.models import backbone_folder
from training.data.dataset import Dataset, read_dataset
from training.data.item_texts import item_texts
from training.data.report import DataError
from training.data.splits import leave_one_out
from training.export import write_artifact
from training.loop.fit import Fitted, read_text
from training.recipe import Recipe, with_settings
from training.recipes.anyo import recipe

__all__ = ["backbone_folder"]  # a fixture

TEMPLATE = "{title}. {brand}. {categories}. {price}"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The ring of items; every second has a brand, and all a price and categories."""
    folder = write_dataset(tmp_path_factory.mktemp("data") / "shop", users=12, items=12)
    items = folder / "items.jsonl"
    rows = [json.loads(line) for line in items.read_text().splitlines()]
    for n, row in enumerate(rows):
        row |= {"price": n + 0.5, "categories": ["wool", "rug"], "description": ""}
        row |= {"brand": "silk  edition"} if n % 2 else {}
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_dataset(folder)


def anyo(folder: Path, template: str) -> Recipe:
    return with_settings(
        recipe(str(folder)),
        ["items.dim=8", "items.text_dim=6", f"items.text_template={template}"],
    )


def test_texts_hold_what_an_item_has(dataset: Dataset) -> None:
    texts = dict(zip(dataset.item_ids, item_texts(dataset, TEMPLATE), strict=True))
    assert texts["i1"] == "blue red 1. silk edition. wool, rug. 1.5"
    assert texts["i2"] == "old red 2. wool, rug. 2.5"
    assert item_texts(dataset, "{title}") == dataset.titles


@pytest.mark.parametrize("name", ["attributes", "description", "item"])
def test_a_column_that_no_item_has_is_refused_with_those_that_there_are(name: str, dataset: Dataset) -> None:
    with pytest.raises(
        DataError, match=rf"names \{{{name}\}}.*have \{{title\}}, \{{categories\}}, .*\{{brand\}}"
    ) as no:
        item_texts(dataset, f"{{title}} {{{name}}}")
    assert "{description}" not in str(no.value).split("its items have")[1]


def test_more_tokens_than_the_reader_has_positions_are_refused(backbone_folder: Callable[[str], Path]) -> None:
    spec = with_settings(anyo(backbone_folder("llama"), TEMPLATE), ["items.text_tokens=1000"]).model_spec()
    with pytest.raises(BackboneError, match=r"items\.text_tokens=1000, but .* reads at most 25\d tokens"):
        title_reader(spec, Sources())


def test_an_artifact_answers_as_it_did_and_checks_the_texts_that_were_read(
    dataset: Dataset, backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    split, sources = leave_one_out(dataset), Sources(vectors=tmp_path / "kept")
    vectors: dict[str, Any] = {}
    for template in ("{title}", TEMPLATE, TEMPLATE):
        chosen = anyo(backbone_folder("llama"), template)
        text = read_text(chosen, split, sources, QUIET)
        assert text is not None
        vectors[template] = text.vectors_NC
    assert text is not None
    assert len(list((tmp_path / "kept").iterdir())) == 2  # one file for each template
    assert not np.allclose(vectors["{title}"], vectors[TEMPLATE], atol=1e-3)
    torch.manual_seed(0)
    model = build_model(chosen.model_spec(), catalog_size=dataset.n_items, text=text, sources=sources)
    folder = tmp_path / "shop"
    write_artifact(folder, chosen, split, Fitted(model), fitted_on="train", metrics={}, training={})

    artifact = load_artifact(folder)
    catalog = Catalog.read(folder / "catalog.parquet")
    check_golden(artifact, [case.asked(catalog._row_of) for case in artifact.golden])
    found = load(folder, shape="vector")
    assert sorted(found.record.text_samples.values()) != sorted(catalog.titles)
    found.model.check_titles(catalog.titles, "shop")
    np.testing.assert_array_equal(load_file(folder / "parts" / "text.safetensors")["vectors"], vectors[TEMPLATE])
    (title,) = artifact.encoder.read_titles([catalog.titles[0]])
    alone = title_reader(chosen.model_spec(), sources)([catalog.titles[0]])
    assert title.text_vector is not None
    expected: Any = text.whitening(alone)[0]
    np.testing.assert_allclose(title.text_vector, expected, atol=1e-5)  # a free title stays a title


def test_other_samples_in_the_manifest_are_refused(
    dataset: Dataset, backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    chosen = anyo(backbone_folder("llama"), TEMPLATE)
    text = read_text(chosen, leave_one_out(dataset), Sources(), QUIET)
    assert text is not None and len(text.samples) == 3
    model = build_model(chosen.model_spec(), catalog_size=dataset.n_items, text=text)
    others = dict.fromkeys(text.samples, "clay bowl")
    found = DenseModel(model.encoder.eval(), np.zeros((dataset.n_items, 8), np.float32), ("ids", "text"), others)
    with pytest.raises(ArtifactError, match="otherwise than in training"):
        found.check_titles(dataset.titles, "shop")
