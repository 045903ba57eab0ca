"""Writes an artifact of an earlier version as this version writes it; its weights and its answers stay as they are.

What changes: the map that whitens titles is put in row order, golden histories of free titles are added where the model
reads text, and backbones that were local folders are copied into the artifact.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index import Catalog, open_index
from index.command_line.one_writer import one_writer
from index.spec import changed
from modeling.artifact.atomic import replaced_folder
from modeling.artifact.golden import AnyCase, GoldenCase, write_golden
from modeling.artifact.manifest import ArtifactError, Manifest, read_manifest, seal
from modeling.backbone.sources import neutral_recipe
from modeling.encoder.build import Sources
from modeling.methods import load, method_of
from modeling.methods.dense import check_vectors
from modeling.methods.dense_scores import COLLABORATIVE
from training.evaluation.golden import History, golden_cases, with_titles, written_cases
from training.recipe import training_method
from training.served_index import write_index


def rewrite(
    folder: Path, out: Path, *, sources: Sources | None = None, index: Mapping[str, Any] | None = None
) -> Manifest:
    """Write ``folder`` to ``out``, which may be the same.

    Args:
        folder: an artifact.
        out: folder to write.
        sources: where local folders lie now that the artifact names and does not hold.
        index: kind and parameters of another index; None keeps the one there is.

    Raises:
        ArtifactError: ``folder`` cannot be loaded, does not answer its golden histories, or cannot have this index.
        BeingWrittenError: another process writes ``out``.
    """
    with one_writer(out), replaced_folder(out) as work:
        shutil.copytree(folder, work, dirs_exist_ok=True)
        return _rewritten(folder, work, sources or Sources(), index)


def _rewritten(folder: Path, work: Path, sources: Sources, index: Mapping[str, Any] | None = None) -> Manifest:
    """Bring ``work``, a copy of ``folder``, into the form of this version."""
    manifest = read_manifest(folder)
    method, _ = method_of(manifest, folder.name)
    on_list = method.shape == "list"
    if index and (on_list or method.own_index):
        kind = "is generative" if on_list else "counts interactions"
        raise ArtifactError(f"artifact {folder.name} {kind} ({manifest.recipe}): it has no vector index")
    catalog = Catalog.read(folder / "catalog.parquet")
    if (inside := work / COLLABORATIVE).is_dir():
        _rewritten(folder / COLLABORATIVE, inside, Sources())
    loaded = load(folder, catalog.popular(), sources=sources)
    plain = [case for case in loaded.golden if not case.titles]
    known = [[_row(catalog, item, folder) for item in case.ids] for case in plain]
    if not on_list:
        check_vectors(loaded.model.encoder, plain, known, folder.name)
    manifest = training_method(manifest.method.kind).repaired(work, manifest, sources)
    golden = loaded.golden
    if "text" in loaded.model.reads:
        loaded.model.check_titles(catalog.titles, folder.name)
        titled = with_titles(known, catalog, reads_text=True)[len(known) :]
        golden = [*plain, *_answers(loaded.model, on_list, catalog, titled)]
        write_golden(work, golden)
    if index:
        manifest = _with_index(folder, work, manifest, index, loaded.model.item_vectors_ND, golden, catalog)
    return seal(work, manifest.model_copy(update={"recipe_data": neutral_recipe(manifest.recipe_data)}))


def _answers(model: Any, on_list: bool, catalog: Catalog, histories: Sequence[History]) -> Sequence[AnyCase]:
    if on_list:
        return written_cases(model, catalog, histories)
    return golden_cases(model.encoder, model.index(), catalog, histories)


def _with_index(
    folder: Path,
    work: Path,
    manifest: Manifest,
    index: Mapping[str, Any],
    vectors_ND: NDArray[np.float32],
    golden: Sequence[GoldenCase],
    catalog: Catalog,
) -> Manifest:
    """Write another index; the manifest with its spec in the recipe."""
    try:
        spec = changed(open_index(folder / "index").spec, index)
        spec = write_index(work / "index", spec, vectors_ND, golden, catalog).spec
    except ValueError as error:  # of the spec or, as SearchError, of a search
        raise ArtifactError(f"artifact {folder.name}: {error}") from error
    return manifest.model_copy(update={"recipe_data": {**manifest.recipe_data, "index": spec.model_dump()}})


def _row(catalog: Catalog, item_id: str, folder: Path) -> int:
    row = catalog.row(item_id)
    if row is None:
        raise ArtifactError(f"golden.json of {folder.name} holds item {item_id!r}, which catalog.parquet does not have")
    return row
