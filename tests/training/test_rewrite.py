"""Artifacts of earlier versions are made whole: what they answer stays, what they lacked is there."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from index import Catalog
from modeling.artifact.manifest import SCHEMA, check_files, read_manifest, seal
from modeling.backbone.sources import neutral
from modeling.backbone.weights_hash import weights_sha256
from modeling.encoder.build import Sources
from modeling.methods.dense import ArtifactError, check_golden, load_artifact, read_dense
from service.artifacts.loading import open_artifact
from tests.modeling.encoder.test_title_check import OLD
from training.cli import app
from training.rewrite import rewrite


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "old"))


@pytest.fixture
def named(old: Path, tmp_path: Path) -> tuple[Path, Path]:
    """As earlier versions wrote it after `--backbone FOLDER`: the folder's path stands in it, not its weights."""
    backbone = (old / "backbone").rename(tmp_path / "my-model")
    manifest, known = read_dense(old)
    spec = known.model.model_copy(
        update={"backbone": known.model.backbone.model_copy(update={"source": str(backbone)})}
    )
    record = known.backbone.model_copy(
        update={"source": str(backbone), "stored": False, "sha256": weights_sha256(backbone)}
    )
    recipe = {"backbone": {"source": str(backbone)}}
    changed = manifest.with_record(known.model_copy(update={"model": spec, "backbone": record}))
    seal(old, changed.model_copy(update={"recipe_data": recipe}))
    return old, backbone


def test_it_is_put_in_order_once_and_answers_the_same(old: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = load_artifact(old)
    result = CliRunner().invoke(app, ["rewrite", str(old)])
    assert result.exit_code == 0, result.output
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        after = load_artifact(old)
    assert caplog.text == "" and after.manifest.schema_version == SCHEMA
    assert after.manifest.version != before.manifest.version
    assert after.golden[: len(before.golden)] == before.golden
    added = after.golden[len(before.golden) :]
    assert [(len(case.ids), len(case.titles)) for case in added] == [(0, 1), (0, 4), (4, 4), (2, 1)]
    catalog = Catalog.read(old / "catalog.parquet")
    check_golden(after, [case.asked(catalog._row_of) for case in after.golden])
    np.testing.assert_array_equal(after.item_vectors_ND, before.item_vectors_ND)
    again = rewrite(old, old)
    assert again.files == after.manifest.files, "there is nothing left to do"
    assert len(open_artifact(old, "cpu").golden) == len(after.golden)


def test_golden_titles_that_come_out_otherwise_are_refused(old: Path) -> None:
    rewrite(old, old)
    cases = json.loads((old / "golden.json").read_text())
    cases[-1]["history"][-1]["title"] = "wool rug"
    (old / "golden.json").write_text(json.dumps(cases))
    seal(old, read_manifest(old))
    artifact = load_artifact(old)
    row_of = Catalog.read(old / "catalog.parquet")._row_of
    with pytest.raises(ArtifactError, match="differs by"):
        check_golden(artifact, [case.asked(row_of) for case in artifact.golden])


def test_a_folder_that_is_named_by_its_path_still_loads_and_then_is_held(named: tuple[Path, Path]) -> None:
    old, backbone = named
    load_artifact(old)
    rewrite(old, old)
    known = read_dense(old)[1].backbone
    assert known.stored and known.source.startswith("folder:my-model@")
    shutil.rmtree(backbone)
    open_artifact(old, "cpu")
    for file in old.rglob("*"):
        assert not file.is_file() or str(backbone.parent).encode() not in file.read_bytes(), file


def test_a_folder_that_is_gone_is_asked_for_and_taken_from_where_it_is(named: tuple[Path, Path]) -> None:
    old, backbone = named
    elsewhere = backbone.rename(backbone.with_name("elsewhere"))
    with pytest.raises(ArtifactError, match=r"python -m training rewrite \S+ --backbone FOLDER") as refused:
        load_artifact(old)
    assert "\n" not in str(refused.value) and str(backbone) in str(refused.value)
    rewrite(old, old, sources=Sources(backbone=elsewhere))
    check_files(old, read_manifest(old))
    open_artifact(old, "cpu")


def test_another_folder_is_refused(named: tuple[Path, Path], tmp_path: Path) -> None:
    old, backbone = named
    other = Path(shutil.copytree(backbone, tmp_path / "other"))
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(bytes(weights))
    shutil.rmtree(backbone)
    with pytest.raises(ArtifactError, match="has weights with sha256"):
        rewrite(old, old, sources=Sources(backbone=other))
    assert not (old / "backbone").exists(), "it stays as it was"


def test_names_stay_and_folders_become_labels(named: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, backbone = named
    label = f"folder:my-model@{weights_sha256(backbone)[:12]}"
    monkeypatch.chdir(backbone.parent)
    assert {neutral(str(backbone)), neutral("my-model"), neutral("./my-model"), neutral(label)} == {label}
    for name in ("none", "tiny", "minilm", "Qwen/Qwen3-0.6B", "gpt2"):
        assert neutral(name) == name
    assert neutral("/gone/for-ever") == "folder:for-ever" and neutral("C:\\models\\mine") == "folder:mine"
