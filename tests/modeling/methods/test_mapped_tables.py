"""A dense model whose tables of items stay in mapped files: the same vectors bit by bit, and the same checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import modeling.inference.encoder_forward as encoder_forward
from modeling.artifact.folders import ArtifactError
from modeling.artifact.manifest import MANIFEST, hash_files, read_manifest, sealed
from modeling.encoder.build import Model
from modeling.encoder.history_state import HistoryState
from modeling.encoder.prompt import FreeItem
from modeling.encoder.user_encoder import read_history
from modeling.methods import load
from modeling.methods.dense import DenseModel
from modeling.methods.dense_tables import ITEMS
from modeling.spec import AdapterSpec, BackboneSpec, HistorySpec, ItemsSpec, ModelSpec, ProjectorSpec
from testing.artifacts import write_text_artifact
from testing.models import ITEMS as COUNT

Build = Callable[..., Model]
HISTORIES: list[list[int | str]] = [[3], [0, 5, 7, 2, 9, 11, 4], [8, 8, COUNT, 1], list(range(12))]
TITLED: list[list[int | str]] = [["red lamp", 4, "a chair of glass"], ["wool"], [2, "silk table"]]
GATES = ModelSpec(
    history=HistorySpec(form="ids"),
    backbone=BackboneSpec(width=16, depth=1, heads=2),
    projector=ProjectorSpec(kind="identity"),
    items=ItemsSpec(tower="id", dim=16),
)
FORMS: dict[str, dict[str, Any]] = {
    "ids": {"form": "ids"},
    "titles and ids": {"form": "compressed"},
    "two positions": {"form": "compressed", "history": {"vectors_per_item": 2}},
    "title tokens": {"form": "titles"},
    "titles alone": {"form": "compressed", "items": ItemsSpec(tower="text", dim=16)},
    "second table with biases": {
        "form": "titles", "items": ItemsSpec(tower="id", dim=16, untied=True, bias=True, normalize=False),
        "projector": ProjectorSpec(kind="identity"),
    },
    "mapped items": {
        "form": "compressed",
        "projector": ProjectorSpec(kind="mlp", side="both", common=24, residual=True, recent=2),
    },
    "cold items": {"form": "compressed", "items": ItemsSpec(tower="both", dim=16, cold="mapped")},
    "items encoded": {"form": "text", "items": ItemsSpec(tower="encoder", dim=16)},
    "gated": {"form": "compressed", "adapter": AdapterSpec(kind="ilora", rank=4, alpha=8, experts=2)},
}  # fmt: skip


def made(name: str, small_model: Build, folder: Path) -> Path:
    """An artifact of one of `FORMS`."""
    model = small_model(**FORMS[name])
    encoder, items = model.encoder, model.encoder.items
    if name == "gated":
        encoder.history_state = HistoryState(GATES, COUNT)
        for key, weight in encoder.named_parameters():
            if key.endswith("up_OR"):
                torch.nn.init.normal_(weight)
    if name == "items encoded":
        encoder.refresh_items()
    if name == "cold items":
        chosen_N = torch.arange(COUNT) % 3 > 0
        items.set_cold(chosen_N, torch.randn(8, 16), torch.randn(16), 0.7)
    return write_text_artifact(model, folder)


def titles_of(encoder: Any) -> Callable[[Sequence[str]], list[FreeItem]]:
    """Reads titles: as tokens by the model, as vectors drawn for their lengths, for which no network is needed."""
    width = encoder.items.text_NC.shape[1]

    def vectors(titles: Sequence[str]) -> list[FreeItem]:
        drawn = [np.random.default_rng(len(title)).standard_normal(width, np.float32) for title in titles]
        return [FreeItem(title, text_vector=vector) for title, vector in zip(titles, drawn, strict=True)]

    return vectors if width else encoder.read_titles


def answers(model: DenseModel, histories: list[list[int | str]]) -> np.ndarray:
    encoder: Any = model.encoder
    read = titles_of(encoder)
    return np.concatenate([
        encoder.encode([encoder.prepare(read_history(history, read)) for history in part])
        for part in (histories, histories[:1])
    ])  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_vectors_are_equal_bit_by_bit(
    name: str, small_model: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(name, small_model, tmp_path / "artifact")
    memory: DenseModel = load(folder).model
    mapped: DenseModel = load(folder, mapped=True).model
    reads_text = "text" in memory.reads
    histories = HISTORIES + TITLED if reads_text else HISTORIES
    np.testing.assert_array_equal(answers(mapped, histories), answers(memory, histories))
    monkeypatch.setattr(encoder_forward, "LARGEST_TABLE", 0)  # rows are mapped for each request, as of a large catalog
    assert mapped.compile() == memory.compile()
    np.testing.assert_array_equal(answers(mapped, histories), answers(memory, histories))
    np.testing.assert_array_equal(mapped.item_vectors_ND, memory.item_vectors_ND)
    towers: list[Any] = [each.encoder.items for each in (mapped, memory)]
    torch.testing.assert_close(towers[0].vectors(), towers[1].vectors(), rtol=0, atol=1e-6)
    if reads_text and name not in ("title tokens", "second table with biases"):
        new = titles_of(memory.encoder)(["a chair of glass", "red lamp"])
        np.testing.assert_array_equal(mapped.encoder.free_vectors(new), memory.encoder.free_vectors(new))


@pytest.mark.parametrize("name", ["titles and ids", "second table with biases", "items encoded", "gated"])
def test_no_table_is_in_memory(name: str, small_model: Build, tmp_path: Path) -> None:
    encoder: Any = load(made(name, small_model, tmp_path / "artifact"), mapped=True).model.encoder
    held = dict(encoder.named_parameters()) | dict(encoder.named_buffers())
    tables = [key for key, tensor in held.items() if tensor.ndim == 2 and COUNT <= len(tensor) <= COUNT + 1]
    assert [key for key in tables if held[key].numel()] == []
    assert not any(tensor.is_meta for tensor in held.values())


def sealed_again(folder: Path) -> Path:
    manifest = read_manifest(folder)
    text = sealed(manifest.model_copy(update={"files": hash_files(folder)}))
    (folder / MANIFEST).write_text(text, encoding="utf-8", newline="\n")
    return folder


def test_what_is_wrong_is_refused_as_without_mapping(small_model: Build, tmp_path: Path) -> None:
    folder = made("ids", small_model, tmp_path / "artifact")
    path = folder / ITEMS
    whole = path.read_bytes()

    def refused() -> str:
        messages = []
        for mapped in (False, True):
            with pytest.raises(ArtifactError) as error:
                load(folder, mapped=mapped)
            messages.append(str(error.value))
        assert messages[0] == messages[1]
        return messages[0]

    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "sha256" in refused()
    weight = load_file(path)["ids.weight"].clone()
    for change, message in (
        (weight[:-1], "has shape"), (weight * torch.nan, "NaN or infinity"), (weight + 1, "differs from what"),
    ):  # fmt: skip
        save_file({"ids.weight": change.contiguous()}, path)
        sealed_again(folder)
        assert message in refused()
    path.write_bytes(whole[: len(whole) // 2])
    sealed_again(folder)
    assert "not a safetensors file" in refused() or "holds" in refused()


def test_a_table_of_another_type_is_converted(small_model: Build, tmp_path: Path) -> None:
    folder = made("ids", small_model, tmp_path / "artifact")
    weight = load_file(folder / ITEMS)["ids.weight"].half()
    save_file({"ids.weight": weight}, folder / ITEMS)
    vectors = torch.nn.functional.normalize(weight[:-1].float(), dim=-1)
    save_file({"vectors": vectors}, folder / "item_vectors.safetensors")
    sealed_again(folder)
    memory, mapped = load(folder).model, load(folder, mapped=True).model
    np.testing.assert_array_equal(answers(mapped, HISTORIES), answers(memory, HISTORIES))
