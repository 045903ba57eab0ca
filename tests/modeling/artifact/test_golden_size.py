"""Golden histories of an artifact are of bounded size: parsing them holds the interpreter's lock while others wait."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modeling.artifact.folders import ArtifactError
from modeling.artifact.golden import GOLDEN, LARGEST_GOLDEN, GoldenCase, read_golden


def test_large_golden_histories_are_refused_before_they_are_parsed(tmp_path: Path) -> None:
    case = {"history": ["a"], "vector": [0.5], "top": ["b"]}
    (tmp_path / GOLDEN).write_text(json.dumps([case]))
    assert len(read_golden(tmp_path, GoldenCase)) == 1
    (tmp_path / GOLDEN).write_text(json.dumps([{**case, "history": ["a" * LARGEST_GOLDEN]}]))
    with pytest.raises(ArtifactError, match=rf"{GOLDEN} of .* holds \d+ bytes, and at most {LARGEST_GOLDEN} are read"):
        read_golden(tmp_path, GoldenCase)
