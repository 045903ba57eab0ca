"""Artifacts: saved and loaded they answer the same; altered in any way they are refused in one sentence."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from modeling.artifact.atomic import replaced_folder
from modeling.artifact.manifest import file_sha256
from modeling.backbone.weights_hash import weights_sha256
from modeling.encoder.build import Model
from modeling.methods.dense import (
    ArtifactError,
    GoldenCase,
    check_golden,
    load_artifact,
    write_golden,
    write_manifest,
    write_model,
)
from modeling.spec import AdapterSpec
from testing.models import ITEMS

Build = Callable[..., Model]
HISTORIES = [[3], [0, 5, 7], [8, 8, 10, 1], list(range(12))]


def write(model: Model, folder: Path, name: str = "small") -> Path:
    """An artifact without catalog and index, which ``modeling`` does not know."""
    encoder = model.encoder.eval()
    with replaced_folder(folder / name) as work:
        write_model(model, work)
        vectors = encoder.encode([encoder.prepare(history) for history in HISTORIES])
        cases = [
            GoldenCase(history=[str(row) for row in history], vector=vector.tolist(), top=["0"])
            for history, vector in zip(HISTORIES, vectors, strict=True)
        ]
        write_golden(work, cases)
        write_manifest(
            work,
            model,
            name=name,
            recipe="test",
            recipe_data={},
            data="none",
            data_sha256="0",
            split="leave-one-out",
            fitted_on="train",
            metrics={},
            training={},
            commit=None,
        )
    return folder / name


def _trained(model: Model) -> Model:
    """Moves the adapter away from zero, so that losing it shows."""
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


@pytest.mark.parametrize(
    ("form", "slots"),
    [
        ("ids", {}),
        ("titles", {}),
        ("compressed", {}),
        ("compressed", {"history": {"vectors_per_item": 2}}),
        ("compressed", {"adapter": AdapterSpec(kind="full")}),
    ],
)
def test_saved_and_loaded_it_answers_the_same(
    form: str, slots: dict[str, Any], small_model: Build, tmp_path: Path
) -> None:
    model = _trained(small_model(form, **slots))
    encoder = model.encoder
    before = encoder.encode([encoder.prepare(history) for history in HISTORIES])
    artifact = load_artifact(write(model, tmp_path))
    after = artifact.encoder.encode([artifact.encoder.prepare(history) for history in HISTORIES])
    np.testing.assert_allclose(after, before, atol=1e-5)
    np.testing.assert_allclose(artifact.item_vectors_ND, encoder.items.vectors().detach().numpy(), atol=1e-6)
    check_golden(artifact, HISTORIES)


def test_peft_itself_reads_the_adapter(small_model: Build, tmp_path: Path) -> None:
    from peft import PeftModel

    from modeling.backbone.loading import load_backbone

    model = _trained(small_model("titles"))
    folder = write(model, tmp_path)
    backbone, _ = load_backbone(model.spec.backbone)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        adapted = PeftModel.from_pretrained(backbone, str(folder / "adapter"))
    embeds = torch.randn(2, 5, 32)
    mine = model.encoder.backbone(inputs_embeds=embeds).last_hidden_state
    torch.testing.assert_close(adapted(inputs_embeds=embeds).last_hidden_state, mine)


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 0x15
    path.write_bytes(bytes(data))


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [_truncate, _alter, _empty, _remove])
@pytest.mark.parametrize("form", ["ids", "titles", "compressed"])
def test_every_damaged_file_is_refused(
    form: str, damage: Callable[[Path], None], small_model: Build, tmp_path: Path
) -> None:
    whole = write(small_model(form), tmp_path)
    for path in _files(whole):
        name = path.relative_to(whole)
        broken = tmp_path / "broken"
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(whole, broken)
        damage(broken / name)
        with pytest.raises(ArtifactError) as caught:
            load_artifact(broken)
        assert "\n" not in str(caught.value)
        assert path.name in str(caught.value)


def test_files_of_two_artifacts_cannot_be_mixed(small_model: Build, tmp_path: Path) -> None:
    first = write(small_model("compressed"), tmp_path, "first")
    second = write(small_model("compressed", seed=9), tmp_path, "second")
    shutil.copy(second / "projector.safetensors", first / "projector.safetensors")
    with pytest.raises(ArtifactError, match=r"projector\.safetensors of first has sha256"):
        load_artifact(first)


def _edit(folder: Path, **changes: Any) -> None:
    """Change manifest fields and make the hashes right again: what a careless tool would do."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["checksum"] = ""
    manifest["files"] = {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in _files(folder)
        if path.name != "manifest.json"
    }
    for field, value in changes.items():
        target = manifest if field.split("__")[0] in manifest else manifest["method"]["record"]
        *parents, last = field.split("__")
        for parent in parents:
            target = target[parent]
        target[last] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 99}, "schema_version 99, and this version reads 1"),
        ({"dim": 8}, r"item_vectors.*shape \[12, 16\], expected \[12, 8\]"),
        ({"catalog_size": 11}, r"shape \[12, 8\], expected \[11, 8\]"),
        ({"model__items__dim": 8}, "expected"),
        ({"model__backbone__layers": 1}, "layers"),
        ({"model__history__form": "titels"}, "model.history.form"),
        ({"backbone__hidden_size": 64}, "hidden_size is 32, and manifest.json expects 64"),
        ({"tokenizer_sha256": "0" * 64}, "tokenizer"),
        ({"model__history__instruction": "chosen items"}, "instruction"),
        ({"model__projector__residual": False, "model__projector__recent": 1}, "holds unknown tensor 'newest_weight'"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(
    changes: dict[str, Any], message: str, small_model: Build, tmp_path: Path
) -> None:
    folder = write(small_model("compressed"), tmp_path)
    _edit(folder, **changes)
    with pytest.raises(ArtifactError, match=message):
        load_artifact(folder)


def test_a_backbone_that_is_only_named_must_have_the_weights_it_had(small_model: Build, tmp_path: Path) -> None:
    folder = write(small_model("compressed"), tmp_path)
    named = (folder / "backbone").rename(tmp_path / "named")
    source = {"model__backbone__source": str(named), "backbone__source": str(named), "backbone__stored": False}
    _edit(folder, **source, backbone__sha256=weights_sha256(named))
    load_artifact(folder)
    _edit(folder, **source, backbone__sha256="0" * 64)
    with pytest.raises(ArtifactError, match="weights with sha256"):
        load_artifact(folder)


def test_a_manifest_without_a_field_is_refused(small_model: Build, tmp_path: Path) -> None:
    folder = write(small_model("ids"), tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["tokenizer_sha256"], manifest["checksum"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="tokenizer_sha256"):
        load_artifact(folder)


def test_item_vectors_that_are_not_the_towers_are_refused(small_model: Build, tmp_path: Path) -> None:
    folder = write(small_model("compressed"), tmp_path)
    path = folder / "item_vectors.safetensors"
    vectors = load_file(path)["vectors"]
    save_file({"vectors": vectors[::-1].copy()}, path)
    _edit(folder)
    with pytest.raises(ArtifactError, match="differs from what the item tower computes"):
        load_artifact(folder)


@pytest.mark.parametrize("change", ["adapter missing a tensor", "adapter zeroed"])
def test_an_adapter_that_is_not_the_trained_one_is_refused(change: str, small_model: Build, tmp_path: Path) -> None:
    """The first is what PEFT only warns about; the second only the golden vectors can see."""
    folder = write(_trained(small_model("compressed")), tmp_path)
    path = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    if "missing" in change:
        tensors.pop(sorted(tensors)[0])
    else:
        tensors = {name: np.zeros_like(tensor) for name, tensor in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    _edit(folder)
    with pytest.raises(ArtifactError, match=r"adapter_model|golden\.json"):
        check_golden(load_artifact(folder), HISTORIES)


def test_a_folder_without_manifest_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no manifest"):
        load_artifact(tmp_path)


def test_the_version_is_a_hash_of_the_content(small_model: Build, tmp_path: Path) -> None:
    versions = [
        load_artifact(write(small_model("ids", seed=seed), tmp_path, f"seed-{number}")).manifest.version
        for number, seed in enumerate((0, 0, 1))
    ]
    assert versions[0] == versions[1] != versions[2]


def test_a_crash_while_writing_leaves_the_old_artifact(small_model: Build, tmp_path: Path) -> None:
    old = write(small_model("ids"), tmp_path)
    version = load_artifact(old).manifest.version
    with pytest.raises(RuntimeError, match="power"), replaced_folder(old) as work:
        (work / "half").write_text("half an artifact")
        raise RuntimeError("power cut")
    assert load_artifact(old).manifest.version == version
    newer = write(small_model("ids", seed=5), tmp_path)
    assert load_artifact(newer).manifest.version != version
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert load_artifact(newer).item_vectors_ND.shape == (ITEMS, 16)
