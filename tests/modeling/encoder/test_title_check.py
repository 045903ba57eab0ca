"""An artifact reads a title as it did in training, or it is repaired, or refused; also one of an earlier version.

``stored/schema-1`` was written before arrays were put in row order: the map of its whitening is scrambled.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from index import Catalog
from modeling.artifact.manifest import read_manifest, seal
from modeling.artifact.tensor_files import save_arrays
from modeling.encoder.build import Sources, build_model, read_titles
from modeling.encoder.item_tower import Whitening
from modeling.encoder.title_check import check_title_tokens, check_titles, read_map, sample_rows
from modeling.methods.dense import ArtifactError, load_artifact
from modeling.spec import AdapterSpec, BackboneSpec, ItemsSpec, ModelSpec
from service.artifacts.loading import open_artifact
from service.errors import StartError
from testing.models import ITEMS, TITLES
from testing.sources.gguf_files import tiny_model, write_gguf
from tests.modeling.artifact.test_artifact import write

OLD = Path(__file__).parent / "stored" / "schema-1"
TEXT = "parts/text.safetensors"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def _with_map(folder: Path, map_CD: np.ndarray) -> Path:
    arrays = load_file(folder / TEXT)
    save_arrays(arrays | {"map": map_CD}, folder / TEXT)
    seal(folder, read_manifest(folder))
    return folder


def test_an_old_artifact_is_put_in_order_and_reads_its_titles(old: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        encoder = load_artifact(old).encoder
    assert f"python -m training rewrite {old}" in caplog.text
    titles = Catalog.read(old / "catalog.parquet").titles
    check_titles(encoder, titles, "old")
    found = np.stack([item.text_vector for item in encoder.read_titles(titles)])
    np.testing.assert_allclose(found, encoder.items.text_NC[: len(titles)].numpy(), atol=1e-5)
    assert not np.allclose(load_file(old / TEXT)["map"], load_artifact(old).encoder._read_titles._whitening.map_CD)


def test_one_in_order_is_left_alone(old: Path, caplog: pytest.LogCaptureFixture) -> None:
    map_CD, repaired = read_map(load_file(old / TEXT)["map"], "old")
    assert repaired
    _with_map(old, map_CD)
    with caplog.at_level(logging.WARNING):
        load_artifact(old)
    assert caplog.text == ""


def test_a_map_in_neither_order_is_refused(old: Path) -> None:
    rng = np.random.default_rng(0)
    _with_map(old, rng.normal(size=load_file(old / TEXT)["map"].shape).astype(np.float32))
    with pytest.raises(ArtifactError, match="not orthogonal"):
        load_artifact(old)


def test_another_whitening_is_refused_by_reading_titles(old: Path) -> None:
    """Its columns are orthogonal, so that only a title read again tells."""
    shape = load_file(old / TEXT)["map"].shape
    rng = np.random.default_rng(0)
    _with_map(old, np.linalg.qr(rng.normal(size=shape))[0].astype(np.float32))
    with pytest.raises(StartError, match="otherwise than in training") as refused:
        open_artifact(old, "cpu")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("shape", [(40, 16), (200, 30), (12, 8), (64, 64), (50, 1)])
def test_either_order_of_any_whitening_is_known(shape: tuple[int, int]) -> None:
    width, keep = shape
    vectors = np.random.default_rng(1).normal(size=(300, width)) * np.geomspace(1, 0.01, width)
    whitening = Whitening.fit(vectors.astype(np.float32), keep)
    map_CD, repaired = read_map(np.ascontiguousarray(whitening.map_CD), "a")
    assert not repaired and np.array_equal(map_CD, whitening.map_CD)
    scrambled = np.frombuffer(whitening.map_CD.tobytes("F"), np.float32).reshape(whitening.map_CD.shape)
    ordered, repaired = read_map(scrambled, "a")
    assert np.array_equal(ordered, whitening.map_CD) and repaired == (not np.array_equal(scrambled, ordered))


def test_titles_that_older_versions_read_otherwise_are_not_looked_at() -> None:
    titles = ["cafe\u0301", "plain", "a\u200bb", "other", "third"]
    assert {titles[row] for row in sample_rows(titles)} == {"plain", "other", "third"}
    assert sample_rows(["cafe\u0301"]) == [0]


def test_other_tokens_are_refused() -> None:
    from modeling.encoder.prompt import FreeItem, TitleTokens

    stored = TitleTokens(np.array([0, 2, 3]), np.array([5, 6, 7], np.int32))
    check_title_tokens([FreeItem("a", np.array([5, 6])), FreeItem("b", np.array([9]))], stored, [0, 1], "x")
    with pytest.raises(ArtifactError, match="reads 2 of 2 titles"):
        check_title_tokens([FreeItem("a", np.array([5])), FreeItem("b", np.array([9]))], stored, [0, 1], "x")


@pytest.mark.parametrize(
    "slots",
    [
        {"adapter": AdapterSpec(kind="lora", rank=2, alpha=4)},
        {"adapter": AdapterSpec(kind="full")},
        {"backbone": {"layers": 1}},
        {"backbone": {"random_weights": True}},
        {"items": {"text_source": "bert"}},
        {"items": {"text_source": "bert", "text_layer": 1, "text_pooling": "last"}},
        {"items": {"text_layer": 1, "text_pooling": "weighted_mean"}, "backbone": {"layers": 1}},
        {"items": {"text_layer": 2}, "backbone": {"layers": 1}},
        {"file": "gguf", "items": {"text_layer": 2}, "backbone": {"layers": 1}},
    ],
    ids=str,
)
def test_titles_are_read_by_the_network_that_read_the_catalog(
    slots: dict[str, Any],
    backbone_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tuned, cut, drawn or another than the user's: and the folders it came from are gone when it is loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "mine").mkdir()
    if "file" in slots:
        folder = write_gguf(tiny_model("llama"), tmp_path / "mine" / "tiny.gguf")
    else:
        folder = Path(shutil.copytree(backbone_folder("qwen3"), tmp_path / "mine" / "folder"))
    items = {"tower": "both", "dim": 16, "text_dim": 8, **slots.get("items", {})}
    if "text_source" in items:
        items["text_source"] = str(shutil.copytree(backbone_folder("bert"), tmp_path / "reader"))
    spec = ModelSpec(
        backbone=BackboneSpec(source=str(folder), dropout=0.0, **slots.get("backbone", {})),
        adapter=slots.get("adapter", AdapterSpec()),
        items=ItemsSpec(**items),
    )
    model = build_model(spec, catalog_size=ITEMS, text=read_titles(spec, TITLES, Sources()))
    with torch.no_grad():
        for parameter in model.encoder.backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    artifact = write(model, tmp_path)
    for name in ("mine", "reader", "cache"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    loaded = load_artifact(artifact)
    check_titles(loaded.encoder, TITLES, "small")
    assert str(tmp_path) not in (artifact / "manifest.json").read_text()
    if spec.items.text_layer is not None and (kept := artifact / "parts" / "text_backbone").exists():
        assert json.loads((kept / "config.json").read_text())["num_hidden_layers"] == spec.items.text_layer
