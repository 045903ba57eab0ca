"""Writes an artifact of an earlier version as this version writes it; its weights and its answers stay as they are.

What changes: the map that whitens titles is put in row order, golden histories of free titles are added where the model
reads text, and backbones that were local folders are copied into the artifact.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from index import Catalog, FlatIndex, open_index
from index.spec import changed
from index.trie import TokenTrie
from modeling.artifact.atomic import replaced_folder
from modeling.artifact.manifest import AnyManifest, GenerativeManifest, Manifest, read_any_manifest, seal
from modeling.artifact.sources import neutral_recipe
from modeling.artifact.tensor_files import save_arrays
from modeling.encoder.build import Sources
from modeling.encoder.title_check import check_titles, read_map
from modeling.methods.bigrec_files import COLLABORATIVE
from modeling.methods.dense import ArtifactError, check_golden, load_artifact, store_backbones, write_golden
from modeling.methods.generative import load_generative
from training.golden import golden_cases, with_titles, written_cases
from training.served_index import write_index

TEXT = "parts/text.safetensors"


def rewrite(
    folder: Path, out: Path, *, sources: Sources | None = None, index: Mapping[str, Any] | None = None
) -> AnyManifest:
    """Write ``folder`` to ``out``, which may be the same.

    Args:
        folder: an artifact.
        out: folder to write.
        sources: where local folders lie now that the artifact names and does not hold.
        index: kind and parameters of another index; None keeps the one there is.

    Raises:
        ArtifactError: ``folder`` cannot be loaded, does not answer its golden histories, or cannot have this index.
    """
    manifest = read_any_manifest(folder)
    with replaced_folder(out) as work:
        shutil.copytree(folder, work, dirs_exist_ok=True)
        if isinstance(manifest, GenerativeManifest):
            if index:
                raise ArtifactError(f"artifact {folder.name} is generative ({manifest.recipe}): it has no vector index")
            return _generative(folder, work, manifest)
        return _dense(folder, work, manifest, sources or Sources(), index)


def _dense(
    folder: Path, work: Path, manifest: Manifest, sources: Sources, index: Mapping[str, Any] | None = None
) -> Manifest:
    artifact = load_artifact(folder, sources=sources)
    catalog = Catalog.read(folder / "catalog.parquet")
    plain = [case for case in artifact.golden if not case.titles]
    known = [[_row(catalog, item, folder) for item in case.ids] for case in plain]
    check_golden(replace(artifact, golden=plain), known)
    if manifest.text_dim:
        arrays = load_file(work / TEXT)
        arrays["map"], _ = read_map(arrays["map"], folder.name)
        save_arrays(arrays, work / TEXT)
    manifest = store_backbones(work, manifest, sources)
    golden, exact = artifact.golden, FlatIndex.build(artifact.item_vectors_ND)
    if "text" in manifest.capabilities.reads:
        check_titles(artifact.encoder, catalog.titles, folder.name)
        titled = with_titles(known, catalog, reads_text=True)[len(known) :]
        golden = [*plain, *golden_cases(artifact.encoder, exact, catalog, titled)]
        write_golden(work, golden)
    if index:
        try:
            spec = changed(open_index(folder / "index").spec, index)
            spec = write_index(work / "index", spec, artifact.item_vectors_ND, golden, catalog).spec
        except ValueError as error:  # of the spec or, as SearchError, of a search
            raise ArtifactError(f"artifact {folder.name}: {error}") from error
        recipe = {**manifest.recipe_data, "index": spec.model_dump()}
        manifest = manifest.model_copy(update={"recipe_data": recipe})
    return seal(work, manifest)


def _generative(folder: Path, work: Path, manifest: GenerativeManifest) -> GenerativeManifest:
    nested = work / COLLABORATIVE
    if nested.is_dir():
        inner = read_any_manifest(nested)
        assert isinstance(inner, Manifest), "what scores items is dense"
        _dense(folder / COLLABORATIVE, nested, inner, Sources())
    catalog = Catalog.read(folder / "catalog.parquet")
    artifact = load_generative(folder, TokenTrie.build, catalog.popular())
    if "text" in artifact.model.reads:
        plain = [case for case in artifact.golden if not case.titles]
        known = [[_row(catalog, item, folder) for item in case.ids] for case in plain]
        histories = with_titles(known, catalog, reads_text=True)[len(known) :]
        write_golden(work, [*plain, *written_cases(artifact.model, catalog, histories)])
    return seal(work, manifest.model_copy(update={"recipe_data": neutral_recipe(manifest.recipe_data)}))


def _row(catalog: Catalog, item_id: str, folder: Path) -> int:
    row = catalog.row(item_id)
    if row is None:
        raise ArtifactError(f"golden.json of {folder.name} holds item {item_id!r}, which catalog.parquet does not have")
    return row
