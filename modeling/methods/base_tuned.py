"""A tuned language model as an artifact keeps it: its base and what was trained beside it, not their sum.

``adapter/`` holds the adapter. The base stands in ``backbone/`` where no public name brings it back; else its name and
the hash of its weights are enough. In memory the base is read once: a model that needs it untuned as well
(`untuned_twin`) reads the same tensors, but for those that the adapter changes.
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
from modeling.backbone.pretrained import read_config, read_model
from modeling.backbone.sources import neutral
from modeling.methods.base import BackboneRecord, LoadContext
from modeling.spec import AdapterSpec

ADAPTER, BASE = "adapter", "backbone"


@dataclass(frozen=True)
class TunedWriter:
    """The parts of a tuned model as files.

    Attributes:
        backbone: which base, and whether its weights are stored.
        adapter: what was trained.
        files: of the parts, in ``adapter/`` and, where the base is stored, ``backbone/``.
    """

    backbone: BackboneRecord
    adapter: AdapterSpec
    files: Files

    @classmethod
    def of_training(
        cls, info: BackboneInfo, spec: AdapterSpec, adapted: nn.Module, base: nn.Module, folder: Path, *, stored: bool
    ) -> TunedWriter:
        """Write the parts of a model that was trained.

        Args:
            info: of the base.
            spec: of the adapter.
            adapted: the model with its adapter, not merged.
            base: the model as it was before, with its head.
            folder: to write to; it is kept until the artifact is written.
            stored: whether the base is written too.
        """
        source = neutral(info.source)
        adapter_of(spec.kind).save(adapted, folder / ADAPTER, source=source)
        if stored:
            save_pretrained(base, folder / BASE)
        return cls(BackboneRecord(**vars(info) | {"source": source}, stored=stored), spec, Files(folder))

    def copy_to(self, folder: Path) -> None:
        """Write the parts into the folder of an artifact."""
        for name in self.files.names():
            part = name.partition("/")[0]
            if part == ADAPTER or (part == BASE and self.backbone.stored):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                self.files.copy(name, folder / name)


def untuned_twin(model: nn.Module) -> Any:
    """A second model of the same tensors, which stays as it is when an adapter is put on the first one and merged."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def base_files(backbone: BackboneRecord, context: LoadContext) -> Files:
    """Where the base of an artifact is read from; raises `BackboneError` where its name brings nothing back here."""
    if backbone.stored:
        return context.files.below(BASE)
    download = context.sources.download and backbone.sha256 is not None
    return backbone_files(backbone.source, context.sources.backbone, backbone.revision, download)


def read_tuned(
    kind: Any, backbone: BackboneRecord, spec: AdapterSpec, context: LoadContext, dtype: torch.dtype
) -> tuple[nn.Module, nn.Module]:
    """The tuned model, its adapter merged in fp32, and its untuned twin.

    Raises:
        ArtifactError: the base is another than the one that was trained on, or the adapter does not fit it.
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
    return tuned.to(dtype), twin.to(dtype)
