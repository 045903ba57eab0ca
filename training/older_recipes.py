"""Recipes as data that manifests of earlier versions hold, read as this version has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOVED = {"objective": "method.objective", "writing": "method", "codes": "method.codes", "tasks": "method.tasks"}
"""Slots of earlier versions, and where their fields are now."""
KINDS = {"dense": "dense", "trie": "trie", "ground": "bigrec", "choose": "llara"}
"""Values of the earlier field ``scoring``, and the method; with task families ``trie`` was P5."""
FIELDS = {
    "bigrec": ("beams", "validation_users"),
    "llara": ("beams", "validation_users", "candidates", "copying", "slots", "match"),
    "p5": ("beams", "validation_users"),
    "trie": ("beams", "validation_users", "among"),
}
"""Of the earlier slot ``writing``, those that a method reads."""


def upgraded(data: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as data of any version as this version has it."""
    if "method" in data or "scoring" not in data:
        return dict(data)
    found = {name: value for name, value in data.items() if name not in (*MOVED, "scoring")}
    kind = "p5" if data.get("tasks") is not None else KINDS.get(str(data["scoring"]), str(data["scoring"]))
    method: dict[str, Any] = {"kind": kind}
    if kind == "dense" and "objective" in data:
        method["objective"] = data["objective"]
    writing = data.get("writing") or {}
    method |= {field: writing[field] for field in FIELDS.get(kind, ()) if field in writing}
    if kind in ("trie", "p5") and "codes" in data:
        method["codes"] = data["codes"]
    if kind == "p5":
        method["tasks"] = data["tasks"]
    return found | {"method": method}
