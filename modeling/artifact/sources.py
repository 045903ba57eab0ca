"""Names of backbones that mean the same on every machine; a local folder has none, so an artifact carries its content.

A recipe may name a folder. In an artifact that folder becomes a label, its name and the beginning of its weights' hash,
and its content lies in the artifact: a path says nothing on another machine and something about this one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from modeling.spec import ModelSpec

LABEL = "folder:"
NAMED = frozenset({"none", "tiny", "minilm"})


def local_folder(source: str | None) -> Path | None:
    """The folder that a source is; None for a name, or a folder that is not there."""
    if source is None or source in NAMED or source.startswith(LABEL):
        return None
    path = Path(source).expanduser()
    return path if path.is_dir() else None


def is_path(source: str | None) -> bool:
    """Whether a source can only be a folder of some machine: it begins as a path does, or the folder is here."""
    if source is None or source in NAMED or source.startswith(LABEL):
        return False
    return source.startswith(("/", ".", "~", "\\")) or source[1:3] in (":\\", ":/") or local_folder(source) is not None


def neutral(source: str) -> str:
    """A source as an artifact names it: ``folder:NAME@HASH`` for a local folder, any other as it is."""
    if not is_path(source):
        return source
    folder = local_folder(source)
    name = (folder.resolve() if folder else Path(source.replace("\\", "/"))).name
    return f"{LABEL}{name}@{weights_sha256(folder)[:12]}" if folder else f"{LABEL}{name}"


def neutral_spec(spec: ModelSpec) -> ModelSpec:
    """A model's description without paths."""
    backbone = spec.backbone.model_copy(update={"source": neutral(spec.backbone.source)})
    text = spec.items.text_source
    items = spec.items.model_copy(update={"text_source": None if text is None else neutral(text)})
    return spec.model_copy(update={"backbone": backbone, "items": items})


def neutral_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe as data without paths."""
    found = dict(recipe)
    for slot, name in (("backbone", "source"), ("items", "text_source")):
        if isinstance(value := (found.get(slot) or {}).get(name), str):
            found[slot] = {**found[slot], name: neutral(value)}
    return found


def weights_sha256(folder: Path) -> str:
    """Of the safetensors files of a folder, names included."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
