"""A manifest's numbers against the sizes of the files beside it, before anything is built from either."""

from __future__ import annotations

from modeling.artifact.folders import ArtifactError
from modeling.artifact.manifest import MANIFEST, GenerativeManifest, Manifest
from modeling.artifact.verified import Files

NUMBER = 4  # bytes of a weight; files may hold them in half of it
LONGEST_HISTORY = 100_000


def check_sizes(files: Files, manifest: Manifest | GenerativeManifest) -> None:
    """Every count in the manifest that memory or time grows with is borne out by the size of a file.

    Raises:
        ArtifactError: one is not.
    """
    size = manifest.catalog_size
    if size < 1:
        raise ArtifactError(f"{MANIFEST} of {files.name} has catalog_size {size}")
    if isinstance(manifest, GenerativeManifest):
        _holds(files, "item_tokens.safetensors", f"catalog_size {size}", 4 * size)
        _history(files, manifest.history_limit)
        return
    spec = manifest.model
    _history(files, spec.history.limit)
    _holds(
        files, "item_vectors.safetensors", f"catalog_size {size} and dim {manifest.dim}", NUMBER * size * manifest.dim
    )
    if manifest.text_dim:
        what = f"catalog_size {size} and text_dim {manifest.text_dim}"
        _holds(files, "parts/text.safetensors", what, NUMBER * size * manifest.text_dim)
    if spec.items.tower != "text":
        what = f"catalog_size {size} and dim {spec.items.dim}"
        _holds(files, "parts/items.safetensors", what, NUMBER * size * spec.items.dim // 2)
    if spec.backbone.own:
        backbone = spec.backbone
        what = f"backbone.width {backbone.width} and backbone.depth {backbone.depth}"
        _holds(files, "backbone/model.safetensors", what, NUMBER * 6 * backbone.depth * backbone.width**2 // 2)


def _history(files: Files, limit: int) -> None:
    if not 1 <= limit <= LONGEST_HISTORY:
        raise ArtifactError(
            f"{MANIFEST} of {files.name} has a history limit of {limit}; 1 to {LONGEST_HISTORY} are read"
        )


def _holds(files: Files, name: str, what: str, least: int) -> None:
    if files.size(name) < least:
        raise ArtifactError(
            f"{MANIFEST} of {files.name} has {what}, which takes {least} bytes or more, and {name} holds "
            f"{files.size(name)}"
        )
