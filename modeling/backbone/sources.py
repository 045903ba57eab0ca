"""Names of backbones that mean the same on every machine; a local folder has none, so an artifact carries its content.

A recipe may name a folder or a GGUF file. In an artifact it becomes a label, its name and the beginning of its weights'
hash, and its content lies in the artifact: a path says nothing on another machine and something about this one.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from modeling.backbone.gguf_folder import CARRIERS, folder_of, is_gguf
from modeling.backbone.weights_hash import weights_sha256
from modeling.spec import ModelSpec

LABEL = "folder:"
NAMED = frozenset({"none", "tiny", "minilm", *CARRIERS})
NAMING = (
    ("backbone", "source"), ("items", "text_source"), ("method", "semantic", "source"), ("method", "views", "source"),
    ("method", "views", "writer"),
)  # fmt: skip
"""Settings of a recipe that name a language model."""


def local_folder(source: str | None) -> Path | None:
    """The folder that a source is, or that is made from its GGUF file; None for a name, or what is not there.

    Raises:
        GgufError: no folder can be made from the file.
    """
    if source is None or source in NAMED or source.startswith(LABEL):
        return None
    path = Path(source).expanduser()
    if is_gguf(source) and path.is_file():
        return folder_of(path)
    return path if path.is_dir() else None


def is_path(source: str | None) -> bool:
    """Whether a source can only be a folder or file of some machine: written as a path, or a folder that is here."""
    if source is None or source in NAMED or source.startswith(LABEL):
        return False
    begins = source.startswith(("/", ".", "~", "\\")) or source[1:3] in (":\\", ":/")
    return begins or is_gguf(source) or local_folder(source) is not None


def neutral(source: str) -> str:
    """A source as an artifact names it: ``folder:NAME@HASH`` for a local folder or file, any other as it is."""
    if not is_path(source):
        return source
    folder, path = local_folder(source), Path(source.replace("\\", "/"))
    name = (folder.resolve() if folder and not is_gguf(source) else path).name
    return f"{LABEL}{name}@{weights_sha256(folder)[:12]}" if folder else f"{LABEL}{name}"


def neutral_spec(spec: ModelSpec) -> ModelSpec:
    """A model's description without paths."""
    backbone = spec.backbone.model_copy(update={"source": neutral(spec.backbone.source)})
    text = spec.items.text_source
    items = spec.items.model_copy(update={"text_source": None if text is None else neutral(text)})
    return spec.model_copy(update={"backbone": backbone, "items": items})


def neutral_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe as data without paths."""
    found = copy.deepcopy(recipe)
    for *slots, name in NAMING:
        section: Any = found
        for slot in slots:
            section = section.get(slot) or {}
        if isinstance(value := section.get(name), str):
            section[name] = neutral(value)
    return found
