"""The index that an artifact is served with: built from its spec and held to the artifact's golden lists, and read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from index import Catalog, IndexSpec, ItemIndex, StoredIndex, build_index, parse_index, save_index
from index.base import FloatArray, RowArray
from index.build import reaching
from index.storage import ENTRY_FILE, INDEX_FILE
from modeling.artifact.golden import GoldenCase
from modeling.artifact.verified import Files
from modeling.methods import Loaded, method_of
from modeling.methods.base import VectorMethod

LARGEST = 256 << 30
"""Bytes of the file of an index."""


def write_index(
    folder: Path,
    spec: IndexSpec,
    vectors_ND: FloatArray,
    golden: Sequence[GoldenCase],
    catalog: Catalog,
    *,
    users: Callable[[], FloatArray] | None = None,
) -> StoredIndex:
    """Build the index over item vectors and write it to ``folder``.

    Args:
        folder: where index.json and the file of the index go.
        spec: kind and parameters. An approximate index that misses too much of a golden list is written with the least
            search effort that does not.
        vectors_ND: item vectors.
        golden: golden cases of exact search.
        catalog: of the artifact.
        users: gives user vectors, which the recall of an approximate kind is measured with; None: item vectors.

    Raises:
        SearchError: no effort is enough for the golden lists.
    """
    index = build_index(spec, vectors_ND, users)
    index = reaching(
        index,
        np.asarray([case.vector for case in golden], np.float32),
        [_rows(case.ids, catalog) for case in golden],
        [_rows(case.top, catalog) for case in golden],
    )
    save_index(index, folder)
    return index


def served_index(files: Files, loaded: Loaded[VectorMethod]) -> ItemIndex:
    """The index that the artifact in ``files`` is served with; raises `ArtifactError` or `IndexFolderError`."""
    if method_of(loaded.manifest, files.name)[0].own_index:
        return loaded.model.index()
    entry, content = (files.read(f"index/{name}", LARGEST) for name in (ENTRY_FILE, INDEX_FILE))
    return parse_index(files.folder / "index", entry, content)


def _rows(items: Sequence[str], catalog: Catalog) -> RowArray:
    return np.asarray(catalog.rows(items) or [], np.int64)
