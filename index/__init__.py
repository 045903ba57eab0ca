"""What is built from the catalog and looked up online: catalog, vector-index protocol, FAISS behind it.

Imports numpy, faiss and polars only; nothing of ours and no torch, so that it can be tested and served alone. Names are
imported when they are first used: a command line that asks for help needs none of them.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from index.base import IndexFolderError, SearchError, VectorIndex
    from index.catalog import Catalog, CatalogError
    from index.flat import FlatIndex
    from index.storage import FolderEntry

__all__ = [
    "Catalog",
    "CatalogError",
    "FlatIndex",
    "IndexFolderError",
    "SearchError",
    "VectorIndex",
    "open_index",
    "parse_index",
]
_HOMES = {
    "Catalog": "index.catalog",
    "CatalogError": "index.catalog",
    "FlatIndex": "index.flat",
    "IndexFolderError": "index.base",
    "SearchError": "index.base",
    "VectorIndex": "index.base",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def open_index(folder: Path | str) -> VectorIndex:
    """The index saved in `folder`, whatever its kind; raises `IndexFolderError`, one sentence."""
    from index.flat import FlatIndex
    from index.storage import read_entry

    folder = Path(folder)
    entry = read_entry(folder)
    _check_kind(entry, folder)
    return FlatIndex.open(folder, entry)


def parse_index(folder: Path, entry: bytes, content: bytes) -> VectorIndex:
    """The index in the bytes of `index.json` and `index.faiss`, read from `folder` before; raises as `open_index`."""
    from index.flat import FlatIndex
    from index.storage import ENTRY_FILE, INDEX_FILE, parse_entry

    found = parse_entry(entry, folder / ENTRY_FILE)
    _check_kind(found, folder)
    return FlatIndex.parse(content, folder / INDEX_FILE, found)


def _check_kind(entry: FolderEntry, folder: Path) -> None:
    from index.base import IndexFolderError
    from index.flat import FACTORY, METRIC

    if entry.metric != METRIC:
        raise IndexFolderError(f"{folder} has metric {entry.metric!r}; scores here are inner products ({METRIC!r})")
    if entry.factory != FACTORY:
        raise IndexFolderError(f"{folder} has factory {entry.factory!r}; this version opens: {FACTORY}")
