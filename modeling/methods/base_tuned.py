"""Storage of an adapter-tuned language model: base and adapter are kept separately, not merged.

``adapter/`` holds the adapter. ``backbone/`` holds the base if it cannot be downloaded by name; otherwise the manifest
holds its name and the hash of its weights. In memory the base is read once: the untuned model (`untuned_twin`) shares
all tensors with the tuned one, except those that the adapter changes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modeling.artifact.folders import ArtifactError
from modeling.artifact.manifest import MANIFEST
from modeling.artifact.tensor_files import save_pretrained
from modeling.artifact.verified import Files
from modeling.backbone.adapters import adapter_of
from modeling.backbone.loading import BackboneInfo, backbone_files
from modeling.backbone.pretrained import read_config, read_model, weights_in
from modeling.backbone.sources import neutral
from modeling.methods.base import BackboneRecord, LoadContext
from modeling.spec import AdapterSpec

ADAPTER, BASE = "adapter", "backbone"


@dataclass(frozen=True)
class TunedWriter:
    """Files of a tuned model, to be written into an artifact.

    Attributes:
        backbone: record of the base, including whether its weights are stored.
        adapter: settings of the adapter.
        files: in ``adapter/`` and, if the base is stored, ``backbone/``.
    """

    backbone: BackboneRecord
    adapter: AdapterSpec
    files: Files

    @classmethod
    def of_training(
        cls, info: BackboneInfo, spec: AdapterSpec, adapted: nn.Module, base: nn.Module, folder: Path, *, stored: bool
    ) -> TunedWriter:
        """Write the files of a model after training.

        Args:
            info: of the base.
            spec: of the adapter.
            adapted: the model with its adapter, not merged.
            base: the untuned model, with its head.
            folder: to write to; it must exist until the artifact is written.
            stored: whether to write the base too.
        """
        source = neutral(info.source)
        adapter_of(spec.kind).save(adapted, folder / ADAPTER, source=source)
        if stored:
            save_pretrained(base, folder / BASE)
        record = BackboneRecord(**info.model_dump() | {"source": source}, stored=stored)
        return cls(record, spec, Files(folder))

    def copy_to(self, folder: Path) -> None:
        """Copy the files into the folder of an artifact."""
        for name in self.files.names():
            part = name.partition("/")[0]
            if part == ADAPTER or (part == BASE and self.backbone.stored):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                self.files.copy(name, folder / name)


def untuned_twin(model: nn.Module) -> Any:
    """A copy of a model that shares its tensors, and stays untuned when an adapter is merged into the first one."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def base_files(backbone: BackboneRecord, context: LoadContext) -> Files:
    """Files of an artifact's base; raises `BackboneError` if it is neither stored nor available by its name."""
    if backbone.stored:
        return context.files.below(BASE)
    download = context.sources.download and backbone.sha256 is not None
    return backbone_files(backbone.source, context.sources.backbone, backbone.revision, download)


def read_tuned(
    kind: Any, backbone: BackboneRecord, spec: AdapterSpec, context: LoadContext, dtype: torch.dtype
) -> tuple[nn.Module, nn.Module]:
    """The tuned model, its adapter merged in fp32, and its untuned twin.

    Raises:
        ArtifactError: the base is not the one used in training, or the adapter does not fit it.
    """
    files = base_files(backbone, context)
    base, sha256 = read_model(kind, files, read_config(files), dtype=torch.float32)
    if not backbone.stored and backbone.sha256 and sha256 != backbone.sha256:
        raise ArtifactError(
            f"backbone {backbone.source!r} has weights with sha256 {sha256[:12]}…, and {MANIFEST} expects "
            f"{backbone.sha256[:12]}…"
        )
    twin, adapter = untuned_twin(base), adapter_of(spec.kind)
    tuned = adapter.merge(adapter.load(base, context.files.below(ADAPTER), spec))
    return weights_in(tuned, dtype), weights_in(twin, dtype)
