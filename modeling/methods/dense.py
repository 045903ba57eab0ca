"""The artifact: one trained recipe as a folder, from which the service rebuilds everything.

Nothing here is pickled. Loading checks every file's hash, every width, the item vectors and the golden histories, and
refuses with one sentence that names the file, what it holds and what was expected.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from modeling.artifact.manifest import (
    GOLDEN,
    MANIFEST,
    SCHEMA,
    ArtifactError,
    BackboneRecord,
    GoldenCase,
    GoldenTitle,
    Manifest,
    WrittenCase,
    on_device,
    open_files,
    read_golden,
    read_manifest,
    refusing,
    seal,
)
from modeling.artifact.sizes import check_sizes
from modeling.artifact.sources import is_path, local_folder, neutral, neutral_recipe, neutral_spec
from modeling.artifact.tensor_files import save_arrays, save_pretrained, save_tensors
from modeling.artifact.verified import Files, Folder, files_of
from modeling.backbone.adapters import adapter_of
from modeling.backbone.loading import load_backbone
from modeling.encoder.build import Model, Sources, TextVectors, build_model, state_of
from modeling.encoder.capabilities import capabilities_of
from modeling.encoder.item_tower import Whitening
from modeling.encoder.prompt import TitleTokens
from modeling.encoder.title_check import read_map
from modeling.encoder.user_encoder import UserEncoder
from modeling.inference.int8_linear import Precision, dtype_of, quantise
from modeling.inference.prepacked_linear import prepack
from modeling.spec import ModelSpec

__all__ = [
    "Artifact",
    "ArtifactError",
    "GoldenCase",
    "GoldenTitle",
    "Manifest",
    "check_golden",
    "load_artifact",
    "read_manifest",
    "tolerance_of",
    "write_golden",
    "write_manifest",
    "write_model",
]

log = logging.getLogger(__name__)

SCRAMBLED = (
    "artifact {name}: parts/text.safetensors holds the map of the whitening in column order, as earlier versions wrote "
    "it; it was put in order, and free titles are read rightly. `python -m training rewrite {folder}` writes it so"
)
GOLDEN_TOLERANCE = 2e-4
"""Largest difference of a golden vector's element: fp32 kernels of other CPUs stay below it, another mask, a missing
adapter or another dtype do not."""
GOLDEN_TITLE_TOLERANCE = 2e-3
"""The same where the history holds free titles: whitening stretches the rounding of the text backbone. Another map or
other tokens are far beyond."""


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact: everything of the model. Catalog and index are opened by ``index`` from the same folder."""

    folder: Path
    manifest: Manifest
    encoder: UserEncoder
    item_vectors_ND: NDArray[np.float32]
    golden: list[GoldenCase]


# -- writing ---------------------------------------------------------------------------------------------------------


def write_model(model: Model, folder: Path) -> NDArray[np.float32]:
    """Write all weights of a trained model into ``folder`` and return the item vectors [N, D].

    The caller adds catalog, index and golden cases, then ``write_manifest`` seals the folder.
    """
    encoder, spec = model.encoder, model.spec
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    save_tensors(
        state_of(encoder.projector) | {"log_scale": encoder.log_scale.detach()}, folder / "projector.safetensors"
    )
    save_tensors(state_of(encoder.items), folder / "parts" / "items.safetensors")
    inputs = _input_maps(encoder)
    if len(inputs):
        save_tensors(state_of(inputs), folder / "parts" / "inputs.safetensors")
    if model.text is not None:
        save_arrays(
            {
                "vectors": model.text.vectors_NC,
                "mean": model.text.whitening.mean_C,
                "map": model.text.whitening.map_CD,
            },
            folder / "parts" / "text.safetensors",
        )
    if model.titles is not None:
        save_arrays(
            {"offsets": model.titles.offsets, "tokens": model.titles.tokens}, folder / "title_tokens.safetensors"
        )
    _write_backbone(model, folder)
    with torch.inference_mode():
        vectors: NDArray[np.float32] = encoder.items.eval().vectors().float().cpu().numpy()
    save_arrays({"vectors": vectors}, folder / "item_vectors.safetensors")
    adapter = adapter_of(spec.adapter.kind)
    if adapter.has_weights:
        adapter.save(encoder.backbone, folder / "adapter", source=neutral(spec.backbone.source))
    return vectors


def _write_backbone(model: Model, folder: Path) -> None:
    """Copies of what no name can bring back: own, fully trained, random and here-made backbones."""
    spec, backbone = model.spec, model.encoder.backbone
    if spec.backbone.own:
        (folder / "backbone").mkdir()
        save_tensors(state_of(backbone), folder / "backbone" / "model.safetensors")
    elif stores_backbone(spec, model.sources):
        body: Any = adapter_of(spec.adapter.kind).bare(backbone)
        save_pretrained(body, folder / "backbone")
        _copy_tokenizer(model.sources.tokenizer or model.sources.backbone, spec.backbone.source, folder / "backbone")
    text = model.sources.text_backbone or local_folder(spec.items.text_source)
    if text is None and spec.items.text_source is None and not stored_backbone_reads_titles(spec):
        text = model.sources.backbone or local_folder(spec.backbone.source)
    if spec.needs_text_vectors and text is not None and not spec.backbone.own:
        _copy_folder(text, folder / "parts" / "text_backbone")


def stores_backbone(spec: ModelSpec, sources: Sources) -> bool:
    """Whether an artifact of this model must carry its backbone's weights."""
    named = sources.backbone is None and local_folder(spec.backbone.source) is None
    return adapter_of(spec.adapter.kind).tunes_backbone or spec.backbone.random_weights or not named


def stored_backbone_reads_titles(spec: ModelSpec) -> bool:
    """Whether the weights in ``backbone/`` are those that read the titles: neither tuned, drawn nor cut."""
    return (
        not adapter_of(spec.adapter.kind).tunes_backbone
        and not spec.backbone.random_weights
        and spec.backbone.layers is None
    )


def _copy_tokenizer(folder: Folder | None, source: str, target: Path) -> None:
    from modeling.backbone.loading import load_tokenizer

    load_tokenizer(source, folder=folder).save_pretrained(str(target))


def _copy_folder(source: Folder, target: Path) -> None:
    target.mkdir(parents=True)
    files = files_of(source)
    for name in files.names():
        if "/" not in name and Path(name).suffix in {".json", ".safetensors", ".txt", ".model"}:
            files.copy(name, target / name)


def _input_maps(encoder: UserEncoder) -> nn.ModuleDict:
    maps = {"ids": encoder.id_input, "text": encoder.text_input}
    return nn.ModuleDict({name: m for name, m in maps.items() if isinstance(m, nn.Linear)})


def store_backbones(folder: Path, manifest: Manifest, sources: Sources) -> Manifest:
    """Copy backbones that are local folders into an artifact that only names them; its manifest, without paths."""
    spec, place = manifest.model, sources.backbone or local_folder(manifest.model.backbone.source)
    text = sources.text_backbone or local_folder(spec.items.text_source)
    stored = manifest.backbone.stored
    if not stored and place is not None and not spec.backbone.own:
        body, _ = load_backbone(spec.backbone, folder=place)
        save_pretrained(body, folder / "backbone")
        _copy_tokenizer(place, spec.backbone.source, folder / "backbone")
        stored = True
        if text is None and spec.items.text_source is None and not stored_backbone_reads_titles(spec):
            text = place
    if spec.needs_text_vectors and text is not None and not (folder / "parts" / "text_backbone").exists():
        _copy_folder(text, folder / "parts" / "text_backbone")
    record = manifest.backbone.model_copy(update={"source": neutral(manifest.backbone.source), "stored": stored})
    changes = {"backbone": record, "model": neutral_spec(spec), "recipe_data": neutral_recipe(manifest.recipe_data)}
    return manifest.model_copy(update=changes)


def write_golden(folder: Path, cases: Sequence[GoldenCase | WrittenCase]) -> None:
    """Write the histories that every later load must answer the same."""
    text = json.dumps([case.model_dump() for case in cases], ensure_ascii=False)
    (folder / GOLDEN).write_text(text + "\n", encoding="utf-8")


def write_manifest(folder: Path, model: Model, **facts: Any) -> Manifest:
    """Hash every file and write ``manifest.json``; ``facts`` are the manifest's fields that the model does not know."""
    facts["recipe_data"] = neutral_recipe(facts["recipe_data"])
    known = vars(model.backbone_info) | {"source": neutral(model.backbone_info.source)}
    manifest = Manifest(
        schema_version=SCHEMA,
        version="",
        model=neutral_spec(model.spec),
        backbone=BackboneRecord(**known, stored=(folder / "backbone").is_dir()),
        tokenizer_sha256=model.tokenizer_sha256,
        instruction_tokens=model.instruction_tokens,
        catalog_size=model.encoder.items.size,
        dim=model.spec.items.dim,
        text_dim=model.text.vectors_NC.shape[1] if model.text else 0,
        normalize=model.spec.items.normalize,
        temperature=float(torch.exp(-model.encoder.log_scale.detach())),
        capabilities=capabilities_of(model.spec),
        files={},
        **facts,
    )
    return seal(folder, manifest)


# -- reading ---------------------------------------------------------------------------------------------------------


def load_artifact(
    folder: Folder | str,
    *,
    device: str = "cpu",
    precision: Precision = "fp32",
    verify: bool = True,
    sources: Sources | None = None,
    download: bool = False,
) -> Artifact:
    """Rebuild a trained model from its folder, adapter merged, in evaluation mode.

    Every file is read once, and what is compared with the manifest's hashes is what is used.

    Args:
        folder: ``artifacts/<name>``, or its files.
        device: where the model runs.
        precision: of a language model; a recipe's own small transformer stays in fp32 where others have eight bits.
        verify: compare every file's hash, also of those that are not needed here.
        sources: folders to take backbones from that the artifact names and does not hold.
        download: whether a hub may be asked for a backbone that is named, is not on this machine, and has a hash.

    Raises:
        ArtifactError: anything is missing, altered, of another width or another schema version.
        PrecisionError: the precision cannot be computed here.
    """
    folder = Path(folder) if isinstance(folder, str) else folder
    with refusing(folder.name):
        files, manifest = open_files(folder, verify=verify)
        if not isinstance(manifest, Manifest):
            raise ArtifactError(
                f"artifact {files.name} is generative ({manifest.recipe}), and a dense one is needed here"
            )
        artifact = _read(files, manifest, device, precision, replace(sources or Sources(), download=download))
        if verify:
            files.verify_rest()
    return artifact


def _read(files: Files, manifest: Manifest, device: str, precision: Precision, given: Sources) -> Artifact:
    check_sizes(files, manifest)
    golden = read_golden(files)
    model = _rebuild(files, manifest, dtype_of(precision), given)
    on_device(model.encoder, device, files.name)
    encoder = model.encoder.eval().requires_grad_(False)
    if precision == "int8" and not manifest.model.backbone.own:
        quantise(encoder.backbone)
    if precision == "bf16":
        prepack(encoder.backbone)
    vectors = _checked_vectors(files, manifest, encoder)
    encoder.items.freeze()
    return Artifact(files.folder, manifest, encoder, vectors, golden)


def tolerance_of(case: GoldenCase) -> float:
    """How much an element of a golden vector may differ."""
    return GOLDEN_TITLE_TOLERANCE if case.titles else GOLDEN_TOLERANCE


def check_golden(artifact: Artifact, histories: Sequence[Sequence[int | str]]) -> None:
    """Encode the golden histories (given as catalog rows and free titles) and compare with the stored vectors.

    Raises:
        ArtifactError: a vector differs by more than `tolerance_of` in an element.
    """
    encoder = artifact.encoder
    vectors = encoder.encode([encoder.prepare(encoder.with_titles(history)) for history in histories])
    for case, vector in zip(artifact.golden, vectors, strict=True):
        stored = np.asarray(case.vector, np.float32)
        difference = float(np.abs(vector - stored).max())
        if encoder.exact and not difference <= tolerance_of(case):
            raise ArtifactError(
                f"{GOLDEN} of {artifact.folder.name}: the vector of history {case.history[-3:]} differs by "
                f"{difference:.2g}, and at most {tolerance_of(case)} is allowed: this is not the model that was trained"
            )


def _rebuild(files: Files, manifest: Manifest, dtype: torch.dtype, given: Sources) -> Model:
    spec = manifest.model
    text, titles = None, None
    if manifest.text_dim:
        arrays = files.arrays("parts/text.safetensors")
        map_CD, repaired = read_map(arrays["map"], files.name)
        if repaired:
            log.warning(SCRAMBLED.format(name=files.name, folder=files.folder))
        text = TextVectors(arrays["vectors"], Whitening(arrays["mean"], map_CD))
        _expect("parts/text.safetensors", "vectors", text.vectors_NC.shape, (manifest.catalog_size, manifest.text_dim))
    if spec.history.reads_tokens:
        arrays = files.arrays("title_tokens.safetensors")
        titles = TitleTokens(arrays["offsets"], arrays["tokens"])
        _expect("title_tokens.safetensors", "offsets", titles.offsets.shape, (manifest.catalog_size + 1,))
    model = build_model(
        spec,
        catalog_size=manifest.catalog_size,
        text=text,
        title_tokens=titles,
        sources=_sources(files, manifest, given),
        adapter_folder=files.below("adapter"),
        dtype=dtype,
    )
    _check_backbone(model, manifest)
    encoder = model.encoder
    if spec.backbone.own:
        _load_into(encoder.backbone, files, "backbone/model.safetensors")
    _load_into(encoder.items, files, "parts/items.safetensors")
    inputs = _input_maps(encoder)
    if len(inputs):
        _load_into(inputs, files, "parts/inputs.safetensors")
    _load_into(_Head(encoder), files, "projector.safetensors")
    return model


def _sources(files: Files, manifest: Manifest, given: Sources) -> Sources:
    """The artifact's own copies, else what was given; raises `ArtifactError` for a folder that is nowhere."""
    spec, copy = manifest.model, files.below("parts/text_backbone")
    text = copy if copy.names() else given.text_backbone
    own = spec.backbone.own or manifest.backbone.stored
    backbone = files.below("backbone") if manifest.backbone.stored and not spec.backbone.own else given.backbone
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
    reads = stored_backbone_reads_titles(spec) if manifest.backbone.stored else True
    download = given.download and manifest.backbone.sha256 is not None
    return Sources(backbone, text, backbone_reads_titles=reads, download=download)


class _Head(nn.Module):
    """Projector and scale as they stand in ``projector.safetensors``."""

    def __init__(self, encoder: UserEncoder) -> None:
        super().__init__()
        for name, child in encoder.projector.named_children():
            self.add_module(name, child)
        for name, parameter in encoder.projector.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        self.log_scale = encoder.log_scale


def _check_backbone(model: Model, manifest: Manifest) -> None:
    found, expected = model.backbone_info, manifest.backbone
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
    if model.tokenizer_sha256 != manifest.tokenizer_sha256:
        raise ArtifactError(
            f"the tokenizer of backbone {expected.source!r} has sha256 {str(model.tokenizer_sha256)[:12]}…, and "
            f"{MANIFEST} expects {str(manifest.tokenizer_sha256)[:12]}…"
        )
    if model.instruction_tokens != manifest.instruction_tokens:
        raise ArtifactError(f"the instruction becomes {model.instruction_tokens}, and {MANIFEST} holds other tokens")


def _load_into(module: nn.Module, files: Files, name: str) -> None:
    """Load weights strictly: same names, same shapes."""
    found = files.tensors(name)
    expected = dict(module.state_dict())
    for key in expected.keys() | found.keys():
        if key not in found or key not in expected:
            state = "lacks" if key not in found else "holds unknown"
            raise ArtifactError(f"{name} of {files.name} {state} tensor {key!r}; expected are {sorted(expected)}")
        _expect(name, key, tuple(found[key].shape), tuple(expected[key].shape))
    module.load_state_dict(found)


def _expect(file: str, key: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise ArtifactError(f"{file}: tensor {key!r} has shape {list(found)}, expected {list(expected)}")


def _checked_vectors(files: Files, manifest: Manifest, encoder: UserEncoder) -> NDArray[np.float32]:
    """The stored item vectors, which must be what the item tower computes."""
    name = "item_vectors.safetensors"
    vectors: NDArray[np.float32] = files.arrays(name)["vectors"]
    _expect(name, "vectors", vectors.shape, (manifest.catalog_size, manifest.dim))
    with torch.inference_mode():
        computed = encoder.items.vectors().float().cpu().numpy()
    difference = float(np.abs(computed - vectors).max())
    if not difference <= GOLDEN_TOLERANCE:
        raise ArtifactError(
            f"{name} of {files.name} differs from what the item tower computes by {difference:.2g}, "
            f"and at most {GOLDEN_TOLERANCE} is allowed"
        )
    return vectors
