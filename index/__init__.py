"""Parts built from the catalog and looked up online: catalog, vector indexes, the trie of item names.

Imports numpy, faiss, polars and pydantic only; no other package of this project and no torch, so that it can be tested
and served alone. Names are imported when they are first used: a command line that asks for help needs none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from index.base import IndexFolderError, IndexSpec, ItemIndex, SearchError, StoredIndex, VectorIndex
    from index.build import build_index
    from index.catalog import Catalog, CatalogError
    from index.kinds.flat import FlatIndex
    from index.spec import AnyIndexSpec, spec_of
    from index.storage import open_index, parse_index, save_index

__all__ = [
    "AnyIndexSpec",
    "Catalog",
    "CatalogError",
    "FlatIndex",
    "IndexFolderError",
    "IndexSpec",
    "ItemIndex",
    "SearchError",
    "StoredIndex",
    "VectorIndex",
    "build_index",
    "open_index",
    "parse_index",
    "save_index",
    "spec_of",
]
_MODULES = {
    "base": ("IndexFolderError", "IndexSpec", "ItemIndex", "SearchError", "StoredIndex", "VectorIndex"),
    "build": ("build_index",),
    "catalog": ("Catalog", "CatalogError"),
    "kinds.flat": ("FlatIndex",),
    "spec": ("AnyIndexSpec", "spec_of"),
    "storage": ("open_index", "parse_index", "save_index"),
}
_HOMES = {name: f"index.{module}" for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
