"""Manifests of schema versions 1 and 2 are read as version 3: the fields of their method stand in its record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modeling.artifact.manifest import MANIFEST, ArtifactError, read_manifest
from modeling.methods import method_of

FACTS: dict[str, Any] = {
    "schema_version": 2, "name": "old", "version": "0123456789ab", "recipe": "old", "recipe_data": {},
    "tokenizer_sha256": None, "catalog_size": 3, "data": "made up", "data_sha256": "0", "split": "leave-one-out",
    "fitted_on": "train", "metrics": {}, "training": {}, "commit": None, "files": {},
}  # fmt: skip
WRITES: dict[str, Any] = {
    "kind": "generative", "architecture": "Qwen3ForCausalLM", "names": "titles", "end": 0, "history_limit": 5,
    "title_limit": 6, "code_sizes": [], "user_buckets": 0, "beams": 4, "max_new_tokens": 7, "renormalize": True,
    "grounding": None, "tasks": None, "choice": None,
}  # fmt: skip
GROUNDING = {
    "instruction": "Chosen:", "popularity_exponent": 0.5, "collaborative_exponent": 0.0, "collaborative": False,
}  # fmt: skip
TASKS = {"families": ["sequential"], "user_sizes": [2, 10], "ratings": [1.0], "whole_words": True}
CHOICE = {"instruction": "Chosen:", "candidates": 4, "slots": "before"}


def write(folder: Path, **fields: Any) -> Path:
    (folder / MANIFEST).write_text(json.dumps({**FACTS, **fields}))
    return folder


@pytest.mark.parametrize("schema", [1, 2])
@pytest.mark.parametrize(
    ("fields", "kind", "own"),
    [
        ({}, "trie", {"renormalize": True}),
        ({"grounding": GROUNDING}, "bigrec", GROUNDING),
        ({"tasks": TASKS}, "p5", TASKS),
        ({"choice": CHOICE}, "llara", CHOICE),
    ],
)
def test_a_generative_manifest_names_its_method(
    fields: dict[str, Any], kind: str, own: dict[str, Any], schema: int, tmp_path: Path
) -> None:
    manifest = read_manifest(write(tmp_path, **{**WRITES, **fields, "schema_version": schema}))
    method, record = method_of(manifest, "old")
    assert (manifest.method.kind, method.shape, manifest.schema_version) == (kind, "list", schema)
    found = record.model_dump(mode="json")
    assert {name: found[name] for name in own} == own
    assert found["beams"] == 4 and found["architecture"] == "Qwen3ForCausalLM"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "new"}, "kind 'new'; known kinds are dense, generative"),
        ({**WRITES, "grounding": "free"}, "grounding|instruction|Extra"),
        ({**WRITES, "surprise": 1}, "method.record.surprise"),
        ({"schema_version": 3}, "field 'method'"),
        (
            {"schema_version": 3, "method": {"kind": "os", "record": {}}},
            "method 'os' not found; known methods are bigrec",
        ),
        ({"schema_version": 3, "method": {"kind": "base", "record": {}}}, "method 'base' not found"),
        ({"schema_version": 3, "method": {"kind": "trie", "record": {}}}, "method.record.architecture"),
    ],
)
def test_what_no_version_wrote_is_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=message):
        method_of(read_manifest(write(tmp_path, **fields)), "old")
