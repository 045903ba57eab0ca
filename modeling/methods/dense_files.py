"""Writes the model files of a dense artifact, and rebuilds the model from them.

``backbone/`` or a named one, ``adapter/``, ``projector.safetensors``, ``parts/items.safetensors``,
``parts/inputs.safetensors``, ``parts/text.safetensors``, ``parts/history_state.safetensors``,
``title_tokens.safetensors``, ``item_vectors.safetensors``.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from modeling.artifact.folders import ArtifactError
from modeling.artifact.manifest import MANIFEST, Manifest, on_device
from modeling.artifact.tensor_files import save_arrays, save_pretrained, save_tensors
from modeling.artifact.verified import Files, Folder, files_of
from modeling.backbone.adapters import adapter_of
from modeling.backbone.loading import load_backbone, load_text_model, load_tokenizer
from modeling.backbone.sources import is_path, local_folder, neutral, neutral_recipe, neutral_spec
from modeling.encoder.build import Model, Sources, TextVectors, build_model, state_of
from modeling.encoder.capabilities import Capabilities, capabilities_of
from modeling.encoder.history_state import FILE as HISTORY_STATE
from modeling.encoder.history_state import HistoryState
from modeling.encoder.item_tower import Whitening, scale_of
from modeling.encoder.prompt import TitleTokens
from modeling.encoder.title_check import read_map
from modeling.encoder.user_encoder import UserEncoder
from modeling.inference.int8_linear import dtype_of, quantise
from modeling.inference.prepacked_linear import prepack
from modeling.methods import method_of
from modeling.methods.base import BackboneRecord, LoadContext, Record
from modeling.methods.dense_tables import (
    ITEM_VECTORS,
    ITEMS,
    TEXT,
    checked_vectors,
    expect_shape,
    load_history_state,
    load_into,
    load_items,
)
from modeling.spec import ModelSpec

log = logging.getLogger(__name__)

SCRAMBLED = (
    "artifact {name}: parts/text.safetensors holds the map of the whitening in column order, as earlier versions wrote "
    "it; it was put in order, and free titles are read rightly. `python -m training rewrite {folder}` writes it so"
)
TITLE_TOKENS = "title_tokens.safetensors"


class DenseRecord(Record):
    """Manifest record of a user encoder and its item tower: specification, backbone, and facts needed before loading.

    ``history_state``: specification of the id model whose state a gated adapter reads; None without one.
    """

    model: ModelSpec
    backbone: BackboneRecord
    instruction_tokens: list[int]
    dim: int
    text_dim: int
    text_samples: dict[int, str] = Field(default_factory=dict)
    """Texts of a few items as the text tower read them, by row, where these are not the titles: they are read again
    when the artifact is loaded."""
    normalize: bool
    temperature: float
    capabilities: Capabilities
    history_state: ModelSpec | None = None


def write_model(model: Model, folder: Path) -> NDArray[np.float32]:
    """Write all weights of a trained model into ``folder`` and return the item vectors [N, D].

    The caller adds catalog, index and golden cases, then ``write_manifest`` seals the folder.
    """
    encoder, spec = model.encoder, model.spec
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    save_tensors(
        state_of(encoder.projector) | {"log_scale": encoder.log_scale.detach()}, folder / "projector.safetensors"
    )
    save_tensors(state_of(encoder.items), folder / ITEMS)
    inputs = input_maps(encoder)
    if len(inputs):
        save_tensors(state_of(inputs), folder / "parts" / "inputs.safetensors")
    if model.text is not None:
        save_arrays(
            {
                "vectors": model.text.vectors_NC,
                "mean": model.text.whitening.mean_C,
                "map": model.text.whitening.map_CD,
            },
            folder / TEXT,
        )
    if model.titles is not None:
        save_arrays({"offsets": model.titles.offsets, "tokens": model.titles.tokens}, folder / TITLE_TOKENS)
    if isinstance(encoder.history_state, HistoryState):
        save_tensors(state_of(encoder.history_state.parts), folder / HISTORY_STATE)
    _write_backbone(model, folder)
    with torch.inference_mode():
        vectors: NDArray[np.float32] = encoder.items.eval().vectors().float().cpu().numpy()
    save_arrays({"vectors": vectors}, folder / ITEM_VECTORS)
    adapter = adapter_of(spec.adapter.kind)
    if adapter.has_weights:
        adapter.save(encoder.backbone, folder / "adapter", source=neutral(spec.backbone.source))
    return vectors


def _write_backbone(model: Model, folder: Path) -> None:
    """Copy backbones that cannot be downloaded by name: trained, randomly initialised or made on this machine."""
    spec, backbone = model.spec, model.encoder.backbone
    if spec.backbone.own and spec.has_network:
        (folder / "backbone").mkdir()
        save_tensors(state_of(backbone), folder / "backbone" / "model.safetensors")
    elif not spec.backbone.own and stores_backbone(spec, model.sources):
        body: Any = adapter_of(spec.adapter.kind).bare(backbone)
        save_pretrained(body, folder / "backbone")
        _copy_tokenizer(model.sources.tokenizer or model.sources.backbone, spec.backbone.source, folder / "backbone")
    text = model.sources.text_backbone or local_folder(spec.items.text_source)
    if text is None and spec.items.text_source is None and not stored_backbone_reads_titles(spec):
        text = model.sources.backbone or local_folder(spec.backbone.source)
    if spec.needs_text_vectors and text is not None and (spec.history.reads_text or not spec.backbone.own):
        _store_text_backbone(text, spec, folder / "parts" / "text_backbone")


def stores_backbone(spec: ModelSpec, sources: Sources) -> bool:
    """Whether an artifact of this model must carry its backbone's weights."""
    named = sources.backbone is None and local_folder(spec.backbone.source) is None
    return adapter_of(spec.adapter.kind).tunes_backbone or spec.backbone.random_weights or not named


def stored_backbone_reads_titles(spec: ModelSpec) -> bool:
    """Whether the weights in ``backbone/`` are those that read the titles: neither tuned, drawn nor cut."""
    return (
        not adapter_of(spec.adapter.kind).tunes_backbone
        and not spec.backbone.random_weights
        and (spec.backbone.layers is None or (spec.items.text_layer or sys.maxsize) <= spec.backbone.layers)
    )


def _copy_tokenizer(folder: Folder | None, source: str, target: Path) -> None:
    load_tokenizer(source, folder=folder).save_pretrained(str(target))


def _store_text_backbone(place: Folder, spec: ModelSpec, target: Path) -> None:
    """Copy the model that reads titles: all its files, or its first layers if only those are used."""
    target.mkdir(parents=True)
    if spec.items.text_layer is not None:
        body, _ = load_text_model(spec.text_backbone, folder=place, layers=spec.items.text_layer)
        save_pretrained(body, target)
        _copy_tokenizer(place, spec.text_backbone, target)
        return
    files = files_of(place)
    for name in files.names():
        if "/" not in name and Path(name).suffix in {".json", ".safetensors", ".txt", ".model"}:
            files.copy(name, target / name)


def input_maps(encoder: UserEncoder) -> nn.ModuleDict:
    """The maps from id and title vectors to inputs of the backbone, where they are trained."""
    maps = {"ids": encoder.id_input, "text": encoder.text_input}
    return nn.ModuleDict({name: m for name, m in maps.items() if isinstance(m, nn.Linear)})


def store_backbones(folder: Path, manifest: Manifest, sources: Sources) -> Manifest:
    """Copy backbones that are local folders into an artifact that only names them; its manifest, without paths."""
    record: DenseRecord = method_of(manifest, folder.name)[1]
    spec, place = record.model, sources.backbone or local_folder(record.model.backbone.source)
    text = sources.text_backbone or local_folder(spec.items.text_source)
    stored = record.backbone.stored
    if not stored and place is not None and not spec.backbone.own:
        body, _ = load_backbone(spec.backbone, folder=place)
        save_pretrained(body, folder / "backbone")
        _copy_tokenizer(place, spec.backbone.source, folder / "backbone")
        stored = True
        if text is None and spec.items.text_source is None and not stored_backbone_reads_titles(spec):
            text = place
    if spec.needs_text_vectors and text is not None and not (folder / "parts" / "text_backbone").exists():
        _store_text_backbone(text, spec, folder / "parts" / "text_backbone")
    backbone = record.backbone.model_copy(update={"source": neutral(record.backbone.source), "stored": stored})
    record = record.model_copy(update={"backbone": backbone, "model": neutral_spec(spec)})
    return manifest.with_record(record).model_copy(update={"recipe_data": neutral_recipe(manifest.recipe_data)})


def record_of(folder: Path, model: Model) -> DenseRecord:
    """The manifest record of a model whose weights are in ``folder``."""
    known = model.backbone_info.model_dump() | {"source": neutral(model.backbone_info.source)}
    return DenseRecord(
        model=neutral_spec(model.spec),
        backbone=BackboneRecord(**known, stored=(folder / "backbone").is_dir()),
        instruction_tokens=model.instruction_tokens,
        dim=model.encoder.items.width,
        text_dim=model.text.vectors_NC.shape[1] if model.text else 0,
        text_samples=dict(model.text.samples) if model.text else {},
        normalize=model.spec.items.normalize,
        temperature=float(1 / scale_of(model.encoder.log_scale.detach())),
        capabilities=capabilities_of(model.spec),
        history_state=gate.spec if isinstance(gate := model.encoder.history_state, HistoryState) else None,
    )


def read_model(record: DenseRecord, context: LoadContext) -> tuple[UserEncoder, NDArray[np.float32]]:
    """The encoder in evaluation mode, adapter merged, and the item vectors [N, D]; raises `ArtifactError`."""
    files, mapped = context.files, context.mapped and context.device == "cpu"
    model = _rebuild(record, context, dtype_of(context.precision), mapped)
    on_device(model.encoder, context.device, files.name)
    encoder = model.encoder.eval().requires_grad_(False)
    if context.precision == "int8":
        quantise(encoder.backbone)
    if context.precision == "bf16":
        prepack(encoder.backbone)
    vectors = checked_vectors(files, (context.manifest.catalog_size, record.dim), encoder, mapped)
    if context.device != "cpu":
        encoder.items.freeze()
    if mapped:
        files.settle()
    return encoder, vectors


def _rebuild(record: DenseRecord, context: LoadContext, dtype: torch.dtype, mapped: bool) -> Model:
    spec, files, size = record.model, context.files, context.manifest.catalog_size
    text, titles = None, None
    if record.text_dim:
        arrays = files.arrays(TEXT, mapped=mapped)
        map_CD, repaired = read_map(np.array(arrays["map"]), files.name)
        if repaired:
            log.warning(SCRAMBLED.format(name=files.name, folder=files.folder))
        text = TextVectors(arrays["vectors"], Whitening(np.array(arrays["mean"]), map_CD), record.text_samples)
        if wrong := [row for row in record.text_samples if not 0 <= row < size]:
            raise ArtifactError(
                f"{MANIFEST} of {files.name} has text_samples of row {wrong[0]}; items are 0..{size - 1}"
            )
        expect_shape(TEXT, "vectors", text.vectors_NC.shape, (size, record.text_dim))
    if spec.history.reads_tokens:
        arrays = files.arrays(TITLE_TOKENS)
        titles = TitleTokens(arrays["offsets"], arrays["tokens"])
        expect_shape(TITLE_TOKENS, "offsets", titles.offsets.shape, (size + 1,))
    model = build_model(
        spec,
        catalog_size=size,
        text=text,
        title_tokens=titles,
        sources=sources_of(files, record, context.sources),
        adapter_folder=files.below("adapter"),
        dtype=dtype,
        empty_items=mapped,
    )
    _check_backbone(model, record, context.manifest.tokenizer_sha256)
    encoder = model.encoder
    if spec.backbone.own and spec.has_network:
        load_into(encoder.backbone, files, "backbone/model.safetensors")
    load_items(model, files, mapped)
    inputs = input_maps(encoder)
    if len(inputs):
        load_into(inputs, files, "parts/inputs.safetensors")
    load_into(Head(encoder), files, "projector.safetensors")
    encoder.history_state = _history_state(record, files, size, mapped)
    return model


def _history_state(record: DenseRecord, files: Files, size: int, mapped: bool) -> HistoryState | None:
    spec, needed = record.history_state, adapter_of(record.model.adapter.kind).needs_condition
    if needed != (spec is not None):
        raise ArtifactError(
            f"{MANIFEST} of {files.name} describes {'no' if spec is None else 'an'} id model beside "
            f"adapter.kind={record.model.adapter.kind!r}, which needs {'one' if needed else 'none'}"
        )
    if spec is None:
        return None
    try:
        found = HistoryState(spec, size, empty_items=mapped)
    except ValueError as error:
        raise ArtifactError(f"{MANIFEST} of {files.name}: {error}") from error
    load_history_state(found, files, mapped)
    return found


def sources_of(files: Files, record: DenseRecord, given: Sources) -> Sources:
    """Folders of the backbones: the artifact's copies, else ``given``; raises `ArtifactError` if one is missing."""
    spec, copy = record.model, files.below("parts/text_backbone")
    text = copy if copy.names() else given.text_backbone
    own = spec.backbone.own or record.backbone.stored
    backbone = files.below("backbone") if record.backbone.stored and not spec.backbone.own else given.backbone
    for source, there, option in (
        (spec.backbone.source, own or backbone is not None, "backbone"),
        (spec.items.text_source, not spec.needs_text_vectors or text is not None, "text-backbone"),
    ):
        if not there and is_path(source) and local_folder(source) is None:
            raise ArtifactError(
                f"artifact {files.name} was trained on the {option} in {source}, and no such folder is here: put it "
                f"back, or make one that holds it with `python -m training rewrite {files.folder} --{option} FOLDER`, "
                "FOLDER being where it is now"
            )
    reads = stored_backbone_reads_titles(spec) if record.backbone.stored else True
    download = given.download and record.backbone.sha256 is not None
    return Sources(backbone, text, backbone_reads_titles=reads, download=download)


class Head(nn.Module):
    """Projector and logit scale with the names used in ``projector.safetensors``."""

    def __init__(self, encoder: UserEncoder) -> None:
        super().__init__()
        for name, child in encoder.projector.named_children():
            self.add_module(name, child)
        for name, parameter in encoder.projector.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        self.log_scale = encoder.log_scale


def _check_backbone(model: Model, record: DenseRecord, tokenizer_sha256: str | None) -> None:
    found, expected = model.backbone_info, record.backbone
    for name in ("architecture", "hidden_size", "layers", "vocabulary"):
        if getattr(found, name) != getattr(expected, name):
            raise ArtifactError(
                f"backbone {expected.source!r}: {name} is {getattr(found, name)!r}, and {MANIFEST} expects "
                f"{getattr(expected, name)!r}"
            )
    if not expected.stored and expected.sha256 and found.sha256 != expected.sha256:
        raise ArtifactError(
            f"backbone {expected.source!r} has weights with sha256 {str(found.sha256)[:12]}…, and {MANIFEST} expects "
            f"{expected.sha256[:12]}…"
        )
    if model.tokenizer_sha256 != tokenizer_sha256:
        raise ArtifactError(
            f"the tokenizer of backbone {expected.source!r} has sha256 {str(model.tokenizer_sha256)[:12]}…, and "
            f"{MANIFEST} expects {str(tokenizer_sha256)[:12]}…"
        )
    if model.instruction_tokens != record.instruction_tokens:
        raise ArtifactError(f"the instruction becomes {model.instruction_tokens}, and {MANIFEST} holds other tokens")
