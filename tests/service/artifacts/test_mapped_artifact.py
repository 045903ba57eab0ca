"""A dense artifact with `ANYO_MAP_INDEX`: it loads in a fraction of the memory, with the same answers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from index import Catalog, spec_of
from index.base import StoredIndex
from index.kinds import index_class
from modeling.encoder.build import build_model
from modeling.spec import BackboneSpec, HistorySpec, ItemsSpec, ModelSpec, ProjectorSpec
from service.artifacts.loading import LoadedArtifact, expected_bytes, open_artifact
from service.artifacts.trial import Limits, try_out
from testing.artifacts import write_dense_artifact

ROOT = Path(__file__).resolve().parents[3]
ITEMS, DIM = 50_000, 1024
TABLE = 4 * ITEMS * DIM  # bytes; the artifact holds three: ids, item vectors, and those of the index
MEMORY = 3 * TABLE // 2
"""That loading may take. In memory, the ids alone take two tables while they are read, and the artifact keeps three."""
COUNTED = 0.5
"""Of one table: the most that is counted as memory. The codes of the index are an eighth of one."""
HISTORIES = [[3], [49_001, 5, 12, 40_000], [1, 2, 3]]
OPEN = """
import json, resource, sys
from pathlib import Path
import numpy as np
import service.artifacts.loading as loading
from service.artifacts.memory import total_bytes
import modeling.methods.dense, index.kinds.ivf_sq
folder, mapped, most = Path(sys.argv[1]), sys.argv[2] == "mapped", int(sys.argv[3])
status = Path("/proc/self/status").read_text()
used = 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmData")))
resource.setrlimit(resource.RLIMIT_DATA, (used + most, used + most))
parts = loading.open_artifact(folder, "cpu", map_index=mapped)
users = parts.encoder.encode([parts.encoder.prepare(history) for history in json.loads(sys.argv[4])])
scores, rows = parts.index.search(users, 20)
np.savez(sys.argv[5], users=users, scores=scores, rows=rows, counted=total_bytes([parts.pieces]))
"""


def make_index(vectors_ND: np.ndarray) -> StoredIndex:
    """Few cells, all of them read."""
    spec = spec_of("ivf-sq", {"cells": 4, "effort": 4, "bits": 4})
    made: StoredIndex = index_class("ivf-sq").make(spec, vectors_ND)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with an id table of 200 MB in random rows."""
    torch.manual_seed(0)
    spec = ModelSpec(
        history=HistorySpec(form="ids", limit=20),
        backbone=BackboneSpec(width=32, depth=1, heads=2),
        projector=ProjectorSpec(kind="linear", residual=True, recent=2),
        items=ItemsSpec(tower="id", dim=DIM),
    )
    catalog = Catalog(
        item_ids=tuple(map(str, range(ITEMS))),
        titles=("",) * ITEMS,
        categories=((),) * ITEMS,
        popularity=np.ones(ITEMS, np.int64),
        popularity_counted_on="train",
    )
    place = tmp_path_factory.mktemp("mapped") / "large"
    return write_dense_artifact(
        build_model(spec, catalog_size=ITEMS), place, catalog, HISTORIES, recipe="sasrec", make_index=make_index
    )


def opened(folder: Path, how: str) -> subprocess.CompletedProcess[str]:
    """In a process that may take `MEMORY` beyond what it has with the libraries loaded."""
    words = [sys.executable, "-c", OPEN, str(folder), how, str(MEMORY), str(HISTORIES)]
    words.append(str(folder.parent / "answers.npz"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment)


async def test_loading_takes_a_fraction_of_the_memory_and_answers_are_the_same(folder: Path) -> None:
    assert await try_out(folder, Limits(MEMORY, 60, map_index=True)), "addresses are not memory"
    done = opened(folder, "mapped")
    assert done.returncode == 0, done.stderr[-500:]
    read = opened(folder, "read").stderr
    assert "needs more memory" in read or "allocate memory" in read, "the limit does not bind"
    parts = open_artifact(folder, "cpu")
    assert isinstance(parts, LoadedArtifact)
    users = parts.encoder.encode([parts.encoder.prepare(history) for history in HISTORIES])
    scores, rows = parts.index.search(users, 20)
    with np.load(folder.parent / "answers.npz") as found:
        np.testing.assert_array_equal(found["users"], users)
        np.testing.assert_array_equal(found["rows"], rows)
        np.testing.assert_array_equal(found["scores"], scores)
        assert found["counted"] < COUNTED * TABLE, "what stays on disk is counted as memory"


def test_the_expected_size_leaves_out_what_stays_on_disk(folder: Path) -> None:
    assert expected_bytes(folder, frozenset(), map_index=True) < COUNTED * TABLE
    assert expected_bytes(folder, frozenset(), map_index=True, device="cuda") > TABLE
    assert 0.9 * expected_bytes(folder, frozenset()) < 2 * TABLE < expected_bytes(folder, frozenset())
