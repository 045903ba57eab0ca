"""Manifests of schema versions 1 and 2, read as version 3.

Until version 2 a manifest was one flat list of fields for dense artifacts and another for generative ones, in which a
nested record said which generative method it was.
"""

from __future__ import annotations

from typing import Any

from modeling.artifact.folders import ArtifactError

COMMON = (
    "checksum", "schema_version", "name", "version", "recipe", "recipe_data", "tokenizer_sha256", "catalog_size",
    "data", "data_sha256", "split", "fitted_on", "metrics", "training", "commit", "files",
)  # fmt: skip
NESTED = {"grounding": "bigrec", "choice": "llara", "tasks": "p5"}
"""Field of a generative manifest that is set for one method only, and the method."""


def upgraded(raw: dict[str, Any], name: str) -> dict[str, Any]:
    """A manifest as JSON of any schema version as version 3 has it; ``name`` of it is for messages.

    Raises:
        ArtifactError: it is of version 1 or 2 and of a kind that these did not know.
    """
    if "method" in raw or raw.get("schema_version") not in (1, 2):
        return raw
    record = {field: value for field, value in raw.items() if field not in (*COMMON, "kind")}
    kind = raw.get("kind", "dense")
    if kind not in ("dense", "generative"):
        raise ArtifactError(f"{name} has kind {str(kind)[:40]!r}; known kinds are dense, generative")
    if kind == "generative":
        kind = "trie"
        for field, method in NESTED.items():
            own = record.pop(field, None)
            if own is not None:
                kind, record = method, record | (own if isinstance(own, dict) else {field: own})
        if kind != "trie":
            record.pop("renormalize", None)
    return {field: raw[field] for field in COMMON if field in raw} | {"method": {"kind": kind, "record": record}}
