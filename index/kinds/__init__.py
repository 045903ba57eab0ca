"""The kinds of index, one file each; a file's name is the kind's, and its class stands there as ``INDEX``."""

from __future__ import annotations

import importlib
import pkgutil

from index.base import StoredIndex


def kind_names() -> list[str]:
    """The names of all kinds, in alphabetical order."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def index_class(kind: str) -> type[StoredIndex]:
    """The class of a kind.

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in kind_names():
        raise ValueError(f"index kind {kind[:40]!r} not found; kinds are {', '.join(kind_names())}")
    found: type[StoredIndex] = importlib.import_module(f"index.kinds.{kind.replace('-', '_')}").INDEX
    return found
