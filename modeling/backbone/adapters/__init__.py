"""Adapters, one file a kind: the file's name is the kind, and its ``ADAPTER`` the `Adapter`."""

from __future__ import annotations

import importlib
import pkgutil

from modeling.backbone.adapters.base import Adapter, AdapterError

_NOT_KINDS = {"base", "condition"}
_REGISTERED: dict[str, Adapter] = {}

__all__ = ["Adapter", "AdapterError", "adapter_kinds", "adapter_of", "register"]


def adapter_kinds() -> list[str]:
    """Kinds of adapters, in alphabetical order."""
    files = {module.name for module in pkgutil.iter_modules(__path__)} - _NOT_KINDS
    return sorted(files | _REGISTERED.keys())


def adapter_of(kind: str) -> Adapter:
    """The adapter of a kind.

    Raises:
        AdapterError: there is no such kind.
    """
    if kind in _REGISTERED:
        return _REGISTERED[kind]
    if kind not in adapter_kinds():
        raise AdapterError(f"adapter.kind={kind!r} is not known; allowed are {', '.join(adapter_kinds())}")
    found: Adapter = importlib.import_module(f"{__name__}.{kind}").ADAPTER
    return found


def register(kind: str, adapter: Adapter) -> None:
    """Add a kind that has no file here."""
    _REGISTERED[kind] = adapter
