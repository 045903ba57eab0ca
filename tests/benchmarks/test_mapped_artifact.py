"""The benchmark of artifacts that do not fit into memory: the large artifact is one, and answers as the small one."""

from __future__ import annotations

from pathlib import Path

from benchmarks.engine.mapped_artifact import enlarge, serve
from index import Catalog
from modeling.methods.dense import check_golden, load_artifact
from testing.artifacts import ITEMS, write_id_artifact


def test_an_enlarged_artifact_loads_and_answers_as_the_small_one(tmp_path: Path) -> None:
    small, large = write_id_artifact(tmp_path, "small"), tmp_path / "large"
    enlarge(small, large, 3000, {"cells": 4, "effort": 4}, memory_mib=8)
    kept = (large / "item_vectors.safetensors").stat().st_mtime_ns
    enlarge(small, large, 3000, {"cells": 4, "effort": 4}, memory_mib=8)
    assert (large / "item_vectors.safetensors").stat().st_mtime_ns == kept, "what is there is not made again"
    catalog, artifact = Catalog.read(large / "catalog.parquet"), load_artifact(large)
    assert len(catalog) == 3000 and catalog.item_ids[:ITEMS] == Catalog.read(small / "catalog.parquet").item_ids
    check_golden(artifact, [[catalog.row(str(item)) or 0 for item in case.history] for case in artifact.golden])
    assert {item for case in artifact.golden for item in case.top} - set(catalog.item_ids[:ITEMS]), "new ones are found"
    found = serve(small, large)
    assert found["recall@10"] > 0.9 and found["held_mib"] > 0
