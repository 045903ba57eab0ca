"""An artifact as the service uses it: the model, the index and the catalog, opened and checked against each
other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from index import Catalog, CatalogError, IndexFolderError, VectorIndex, open_index
from modeling.artifact import ArtifactError, GoldenCase, load_artifact
from modeling.user_encoder import UserEncoder
from service.errors import StartError


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything one artifact brings; row n of `catalog` and `index` is the same item."""

    name: str
    version: str
    recipe: str
    reads: tuple[str, ...]
    encoder: UserEncoder
    index: VectorIndex
    catalog: Catalog
    golden: tuple[GoldenCase, ...]


def open_parts(folder: Path, device: str) -> Parts:
    """Load the artifact in `folder`; raises StartError, one sentence. Takes seconds and blocks: use a thread."""
    try:
        artifact = load_artifact(folder, device=device)
        catalog = Catalog.read(folder / "catalog.parquet")
        index = open_index(folder / "index")
    except (ArtifactError, CatalogError, IndexFolderError, OSError) as error:
        raise StartError(str(error)) from error
    except (RuntimeError, AssertionError) as error:  # how torch says that a device is not there
        raise StartError(f"artifact {folder.name} cannot run on device {device!r}: {error}") from error
    manifest = artifact.manifest
    if not len(catalog) == index.size == manifest.catalog_size:
        raise StartError(
            f"artifact {folder.name}: catalog.parquet holds {len(catalog)} items and index/ {index.size}, "
            f"and manifest.json expects {manifest.catalog_size}"
        )
    if index.dim != manifest.dim:
        raise StartError(
            f"artifact {folder.name}: index/ has width {index.dim}, and manifest.json expects {manifest.dim}"
        )
    return Parts(
        name=manifest.name,
        version=manifest.version,
        recipe=manifest.recipe,
        reads=tuple(manifest.capabilities.reads),
        encoder=artifact.encoder,
        index=index,
        catalog=catalog,
        golden=tuple(artifact.golden),
    )
