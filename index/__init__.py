"""What is built from the catalog and looked up online: catalog, vector-index protocol, FAISS behind it.

Imports numpy, faiss and polars only; nothing of ours and no torch, so that it can be tested and served alone.
"""

from __future__ import annotations

from pathlib import Path

from index.base import IndexFolderError, SearchError, VectorIndex
from index.catalog import Catalog, CatalogError
from index.flat import FACTORY as FLAT
from index.flat import METRIC, FlatIndex
from index.folder import read_entry

__all__ = [
    "Catalog",
    "CatalogError",
    "FlatIndex",
    "IndexFolderError",
    "SearchError",
    "VectorIndex",
    "open_index",
]


def open_index(folder: Path | str) -> VectorIndex:
    """The index saved in `folder`, whatever its kind; raises `IndexFolderError`, one sentence."""
    folder = Path(folder)
    entry = read_entry(folder)
    if entry.metric != METRIC:
        raise IndexFolderError(f"{folder} has metric {entry.metric!r}; scores here are inner products ({METRIC!r})")
    if entry.factory != FLAT:
        raise IndexFolderError(f"{folder} has factory {entry.factory!r}; this version opens: {FLAT}")
    return FlatIndex.open(folder, entry)
