"""What is checked is what is used: files are read once, and what becomes of them later changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling.artifact.manifest import MANIFEST, hash_files, open_files, sealed
from modeling.artifact.plain_json import DEEPEST, JsonError, parse
from modeling.artifact.tensor_reader import DTYPES
from modeling.artifact.verified import Files
from modeling.backbone.pretrained import CODE_KEYS
from modeling.encoder.build import Model
from modeling.methods.dense import ArtifactError, load_artifact, read_dense
from modeling.spec import AdapterSpec
from tests.modeling.artifact.test_artifact import HISTORIES, write

Build = Callable[..., Model]
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("ids", {}),
    ("titles", {}),
    ("titles", {"adapter": AdapterSpec(kind="full")}),
    ("compressed", {"adapter": AdapterSpec(kind="full")}),
]


def answers(artifact: Any) -> Any:
    encoder = artifact.encoder
    return encoder.encode([encoder.prepare(history) for history in HISTORIES])


def seal(folder: Path, **changes: Any) -> Path:
    """New hashes and a valid checksum: what whoever can write the folder can do."""
    manifest, record = read_dense(folder)
    changed = manifest.with_record(record.model_copy(update=changes))
    text = sealed(changed.model_copy(update={"files": hash_files(folder)}))
    (folder / MANIFEST).write_text(text, encoding="utf-8", newline="\n")
    return folder


def files_below(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("form", "slots"), KINDS)
def test_what_happens_to_the_files_after_loading_changes_nothing(
    form: str, slots: dict[str, Any], small_model: Build, tmp_path: Path
) -> None:
    model = small_model(form, **slots)
    folder, places = write(model, tmp_path), [tmp_path]
    if not model.spec.backbone.own and not (folder / "backbone").exists():  # what a name stands for can be written to
        own = shutil.copytree(model.spec.backbone.source, tmp_path / "backbone")
        backbone = model.spec.backbone.model_copy(update={"source": str(own)})
        seal(folder, model=model.spec.model_copy(update={"backbone": backbone}))
    artifact = load_artifact(folder)
    before = answers(artifact)
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path) not in maps.read_text()
        assert not [held for held in Path("/proc/self/fd").iterdir() if str(tmp_path) in os.path.realpath(held)]
    for path in files_below(*places):
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
        os.truncate(path, 1)
    np.testing.assert_array_equal(answers(artifact), before)


@pytest.mark.parametrize(("form", "slots"), KINDS)
def test_a_file_that_is_changed_between_the_look_and_the_reading_is_refused(
    form: str, slots: dict[str, Any], small_model: Build, tmp_path: Path
) -> None:
    folder = write(small_model(form, **slots), tmp_path)
    for path in files_below(folder):
        if path.name == MANIFEST:
            continue
        whole, name = path.read_bytes(), path.relative_to(folder).as_posix()
        files, _ = open_files(folder)
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ArtifactError, match=f"{name} of .* has sha256"):
            load_artifact(files)
        path.write_bytes(whole)
    load_artifact(folder)


def _never(*_: object, **__: object) -> NoReturn:
    raise AssertionError("this must not be called")


@pytest.mark.parametrize("key", CODE_KEYS)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_config_that_brings_in_code_is_refused(name: str, key: str, small_model: Build, tmp_path: Path) -> None:
    folder = write(small_model("titles", adapter=AdapterSpec(kind="full")), tmp_path)
    (folder / "backbone" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((folder / "backbone" / name).read_text())
    config["nested"] = {key: {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoTokenizer": ["evil.T", None]}}
    (folder / "backbone" / name).write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=key) as refused:
        load_artifact(seal(folder))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


def test_weights_are_read_from_safetensors_files_only(
    small_model: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "load", _never)
    full = write(small_model("titles", adapter=AdapterSpec(kind="full")), tmp_path, "full")
    (full / "backbone" / "model.safetensors").rename(full / "backbone" / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        load_artifact(seal(full))
    lora = write(small_model("titles"), tmp_path, "lora")
    (lora / "adapter" / "adapter_model.safetensors").rename(lora / "adapter" / "adapter_model.bin")
    with pytest.raises(ArtifactError, match=r"adapter_model\.safetensors"):
        load_artifact(seal(lora))


def test_another_adapter_than_the_manifest_says_is_refused(small_model: Build, tmp_path: Path) -> None:
    folder = write(small_model("titles"), tmp_path)
    path = folder / "adapter" / "adapter_config.json"
    for key, value in (("lora_alpha", 99), ("use_rslora", True), ("use_dora", True), ("peft_type", "IA3")):
        whole = json.loads(path.read_text())
        path.write_text(json.dumps(whole | {key: value}))
        with pytest.raises(ArtifactError, match=key):
            load_artifact(seal(folder))
        path.write_text(json.dumps(whole))
    load_artifact(seal(folder))


@pytest.mark.parametrize("source", ["attacker-org/weights", "/etc", "../../etc", "https://host/x", "a" * 300])
def test_a_backbone_from_elsewhere_is_not_asked_for(
    source: str, small_model: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(small_model("titles"), tmp_path)
    _, manifest = read_dense(folder)
    spec = manifest.model.model_copy(update={"backbone": manifest.model.backbone.model_copy(update={"source": source})})
    shutil.rmtree(folder / "backbone")
    seal(folder, model=spec, backbone=manifest.backbone.model_copy(update={"source": source, "stored": False}))
    monkeypatch.setattr(socket.socket, "connect", _never)
    monkeypatch.setattr(socket, "getaddrinfo", _never)
    with pytest.raises(ArtifactError) as refused:
        load_artifact(folder)
    assert "\n" not in str(refused.value)


def test_linked_files_and_folders_are_followed(small_model: Build, tmp_path: Path) -> None:
    plain = write(small_model("compressed"), tmp_path / "plain")
    linked = tmp_path / "linked"
    shutil.copytree(plain, linked)
    shutil.move(linked / "parts", tmp_path / "parts")
    (linked / "parts").symlink_to(tmp_path / "parts")
    volume = tmp_path / "volume"  # as Kubernetes projects one
    shutil.copytree(plain, volume / "..2026_01_01")
    (volume / "..data").symlink_to("..2026_01_01")
    for entry in plain.iterdir():
        (volume / entry.name).symlink_to(f"..data/{entry.name}")
    whole = hash_files(plain)
    for folder in (linked, volume):
        assert hash_files(folder) == whole
        np.testing.assert_array_equal(answers(load_artifact(folder)), answers(load_artifact(plain)))


def _loop(folder: Path) -> None:
    (folder / "loop").symlink_to(".")


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def _device(folder: Path) -> None:
    (folder / "zero").symlink_to("/dev/zero")


def _broken(folder: Path) -> None:
    (folder / "gone").symlink_to("nowhere")


@pytest.mark.parametrize("change", [_loop, _pipe, _device, _broken])
def test_what_is_no_file_is_refused(change: Callable[[Path], None], small_model: Build, tmp_path: Path) -> None:
    folder = write(small_model("ids"), tmp_path)
    change(folder)
    with pytest.raises(ArtifactError, match=r"loop|pipe|zero|gone"):
        load_artifact(folder)


def test_tensors_of_every_type_are_read(tmp_path: Path) -> None:
    bits = torch.arange(64, dtype=torch.uint8) % 2
    whole = {name: bits.view(dtype).clone() for name, dtype in DTYPES.items()}
    whole |= {"none": torch.zeros(0, 3), "scalar": torch.tensor(3.0)}
    save_file(whole, tmp_path / "all.safetensors", metadata={"format": "pt"})
    found = Files(tmp_path).tensors("all.safetensors")
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))
    assert len({tensor.untyped_storage().data_ptr() for tensor in found.values() if tensor.numel()}) == len(whole) - 1


def _tensor_file(header: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def _entry(**changes: Any) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        _tensor_file(b"{}", length=2**63),
        _tensor_file(b"{}", b"\0" * 4),
        _tensor_file(b"[]"),
        _tensor_file(b"\xff\xfe"),
        _tensor_file(b'{"a":' * 1000 + b"1" + b"}" * 1000),
        _tensor_file(_entry(shape=[2**62, 2**62]), b"\0" * 4),
        _tensor_file(_entry(shape=[-1]), b"\0" * 4),
        _tensor_file(_entry(shape=[True]), b"\0" * 4),
        _tensor_file(_entry(shape=[1] * 10_000), b"\0" * 4),
        _tensor_file(_entry(data_offsets=[0, 2**50]), b"\0" * 4),
        _tensor_file(_entry(data_offsets=[4, 8]), b"\0" * 8),
        _tensor_file(_entry(data_offsets=[4, 0]), b"\0" * 4),
        _tensor_file(_entry(dtype="F4"), b"\0" * 4),
        _tensor_file(_entry(dtype=None), b"\0" * 4),
        _tensor_file(json.dumps({"a": 1}).encode()),
    ],
)
def test_what_is_no_tensor_file_is_refused_before_memory_is_taken(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"x\.safetensors of .* is not a safetensors file"):
        Files(tmp_path).tensors("x.safetensors")


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "1" * 5000, "NaN", '{"a": Infinity}', "", "{", "\xff"],
)
def test_json_that_is_none_or_too_deep_is_refused(text: str) -> None:
    with pytest.raises(JsonError, match=r"^x "):
        parse(text.encode("latin-1"), "x")


def test_json_of_ordinary_depth_is_read() -> None:
    assert parse(("[" * DEEPEST + "]" * DEEPEST).encode(), "x")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["parts/items.safetensors", "item_vectors.safetensors", "projector.safetensors"])
def test_a_tensor_with_nan_or_infinity_is_refused(name: str, value: float, small_model: Build, tmp_path: Path) -> None:
    """Golden answers need not touch the element, and a score of NaN has no order."""
    folder = write(small_model("ids"), tmp_path / "a")
    tensors = load_file(folder / name)
    key = max(tensors, key=lambda each: tensors[each].numel())
    tensors[key].view(-1)[-1] = value
    save_file(tensors, folder / name)
    with pytest.raises(ArtifactError, match="holds NaN or infinity"):
        load_artifact(seal(folder))
